# May this principal do this to that tenant's agents? A caller's ticket stands on the answer until it is renewed.
#
# input: principal {tenant, scopes}, action, tenant (whose agents); standing {plan, active} of a tenant made at run time
package sovereign.invocation

import rego.v1

scope_of := {
	"register": "sovereign:agents:register",
	"read": "sovereign:agents:read",
	"list": "sovereign:agents:list",
	"remove": "sovereign:agents:remove",
	"invoke": "sovereign:agents:invoke",
	"usage": "sovereign:usage:read",
}

default action_known := false

action_known if is_string(scope_of[input.action])

default scope_held := false

scope_held if scope_of[input.action] in input.principal.scopes

default same_tenant := false

same_tenant if {
	is_string(input.tenant)
	input.principal.tenant == input.tenant
}

default tenant_active := false

tenant_active if data.catalog.tenants[input.principal.tenant].active == true

# Made at run time: as governance says.
tenant_active if {
	not data.catalog.tenants[input.principal.tenant]
	input.standing.active == true
}

checks := {
	"action_known": action_known,
	"scope_held": scope_held,
	"same_tenant": same_tenant,
	"tenant_active": tenant_active,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

failures["action_known"] := sprintf("There is no action %s.", [input.action]) if not action_known

failures["scope_held"] := sprintf("The credential lacks the scope %s. Use one that has it.", [scope_of[input.action]]) if {
	not scope_held
}

# Said to operators only: whoever asks is told that there is no such agent.
failures["same_tenant"] := "The agent belongs to another tenant." if not same_tenant

failures["tenant_active"] := sprintf("Tenant %s is not active here.", [input.principal.tenant]) if not tenant_active

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": [],
	"tools": [],
}
