# May this become an agent? Asked once, before there is a record of it.
#
# input: principal {tenant, project, subject, scopes}, agent {the declared spec, without its texts and labels}
package sovereign.admission

import rego.v1

default registration_allowed := false

registration_allowed if "sovereign:agents:register" in input.principal.scopes

default agent_named := false

agent_named if {
	is_string(input.agent.agent_id)
	input.agent.agent_id != ""
}

checks := object.union_n([
	data.sovereign.terms.checks,
	data.sovereign.data_access.declared_checks,
	data.sovereign.region.declared_checks,
	data.sovereign.compliance.declared_checks,
	{"registration_allowed": registration_allowed, "agent_named": agent_named},
])

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

own_failures["registration_allowed"] := "The credential lacks the scope sovereign:agents:register. Use one that has it." if {
	not registration_allowed
}

own_failures["agent_named"] := "The agent has no id. Give it one." if not agent_named

# What must be done by someone else before the decision takes effect.
obligations contains obligation if {
	some capability in input.agent.capabilities
	some obligation in data.catalog.capabilities[capability].obligations
}

default tools := set()

tools := data.sovereign.terms.wanted_tools if allow

default failures := {}

# Said only of what is refused: an admission need not look for sentences.
failures := object.union_n([
	data.sovereign.terms.failures,
	data.sovereign.data_access.declared_failures,
	data.sovereign.region.declared_failures,
	data.sovereign.compliance.declared_failures,
	own_failures,
]) if not allow

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": sort(obligations),
	"tools": sort(tools),
}
