# May one agent hand work to another, with these rights? A child has no right that its parent lacks, lives no longer, and the
# chain is as short as the plan says.
#
# input: principal {tenant}, parent and child {tenant, agent_id, scopes, tools, network_access, data_access_level,
# expires_us, depth}; the depth of what a person or a job called is 0
package sovereign.delegation

import rego.v1

parent := input.parent

child := input.child

default same_tenant := false

same_tenant if {
	is_string(input.principal.tenant)
	parent.tenant == input.principal.tenant
	child.tenant == input.principal.tenant
}

default parent_may_delegate := false

# Granted at its admission, and asked again whenever it wakes.
parent_may_delegate if "ask_agent" in parent.tools

default not_itself := false

not_itself if {
	is_string(parent.agent_id)
	is_string(child.agent_id)
	parent.agent_id != child.agent_id
}

default scopes_within_parent := false

scopes_within_parent if subset(child.scopes, parent.scopes)

default tools_within_parent := false

tools_within_parent if subset(child.tools, parent.tools)

default egress_within_parent := false

egress_within_parent if subset(child.network_access, parent.network_access)

default data_access_within_parent := false

data_access_within_parent if {
	mine := data.catalog.data_access_levels[child.data_access_level]
	theirs := data.catalog.data_access_levels[parent.data_access_level]
	subset(mine.reads, theirs.reads)
	subset(mine.writes, theirs.writes)
}

default lifetime_within_parent := false

lifetime_within_parent if {
	is_number(child.expires_us)
	is_number(parent.expires_us)
	child.expires_us <= parent.expires_us
}

default depth_within_plan := false

depth_within_plan if {
	is_number(parent.depth)
	parent.depth >= 0
	child.depth == parent.depth + 1
	child.depth <= data.sovereign.terms.plan.max_delegation_depth
}

subset(some_names, all_names) if {
	is_array(some_names)
	is_array(all_names)
	every name in some_names {
		name in all_names
	}
}

checks := {
	"tenant_active": data.sovereign.terms.tenant_active,
	"same_tenant": same_tenant,
	"parent_may_delegate": parent_may_delegate,
	"not_itself": not_itself,
	"scopes_within_parent": scopes_within_parent,
	"tools_within_parent": tools_within_parent,
	"egress_within_parent": egress_within_parent,
	"data_access_within_parent": data_access_within_parent,
	"lifetime_within_parent": lifetime_within_parent,
	"depth_within_plan": depth_within_plan,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

# Said to operators only: whoever asks is told that there is no such agent.
failures["same_tenant"] := "Parent and child are not both of the caller's tenant. Delegate within one tenant." if {
	not same_tenant
}

failures["parent_may_delegate"] := "The parent was not granted the tool ask_agent. Register it with the capability delegation." if {
	not parent_may_delegate
}

failures["not_itself"] := "An agent can't delegate to itself. Name another agent." if not not_itself

failures["scopes_within_parent"] := sprintf("The parent lacks the scopes %s. Leave them out.", [names]) if {
	not scopes_within_parent
	names := beyond(child.scopes, parent.scopes)
}

failures["tools_within_parent"] := sprintf("The parent lacks the tools %s. Leave them out.", [names]) if {
	not tools_within_parent
	names := beyond(child.tools, parent.tools)
}

failures["egress_within_parent"] := sprintf("The parent does not reach %s. Leave it out.", [names]) if {
	not egress_within_parent
	names := beyond(child.network_access, parent.network_access)
}

failures["data_access_within_parent"] := sprintf(
	"The data access level %s opens more than the parent's %s. Choose one that does not.",
	[child.data_access_level, parent.data_access_level],
) if {
	not data_access_within_parent
}

failures["lifetime_within_parent"] := "The child would outlive its parent's grant. Let it expire with the parent or before." if {
	not lifetime_within_parent
}

failures["depth_within_plan"] := sprintf(
	"Plan %s lets work be handed on %d times, one step at a time. Call the agent directly, or from further up.",
	[data.sovereign.terms.tenant.plan, data.sovereign.terms.plan.max_delegation_depth],
) if {
	not depth_within_plan
}

beyond(some_names, all_names) := concat(", ", sort({name | some name in some_names; not name in all_names}))

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": [],
	"tools": [],
}
