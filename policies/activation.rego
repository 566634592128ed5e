# May a passive agent wake? Asked at each wake, because plans change after a registration: an agent that would not be
# admitted today does not start today.
#
# input: principal {tenant}, agent {the stored spec}, tools [granted at admission], state
package sovereign.activation

import rego.v1

default state_passive := false

state_passive if input.state == "passive"

default tools_still_granted := false

tools_still_granted if {
	is_array(input.tools)
	every tool in input.tools {
		tool in data.sovereign.tool_call.callable_tools
	}
}

checks := object.union_n([
	data.sovereign.terms.checks,
	data.sovereign.data_access.declared_checks,
	data.sovereign.region.declared_checks,
	data.sovereign.compliance.declared_checks,
	{"state_passive": state_passive, "tools_still_granted": tools_still_granted},
])

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

own_failures["state_passive"] := sprintf("The agent is %s; only a passive agent wakes.", [input.state]) if {
	not state_passive
}

own_failures["tools_still_granted"] := sprintf(
	"Tools granted at registration are not granted any more: %s. Register the agent again without them.",
	[concat(", ", sort(lost))],
) if {
	not tools_still_granted
	lost := {t | some t in input.tools; not t in data.sovereign.tool_call.callable_tools}
}

default tools := []

tools := sort(input.tools) if allow

decision := {
	"allow": allow,
	"checks": checks,
	"failures": object.union_n([
		data.sovereign.terms.failures,
		data.sovereign.data_access.declared_failures,
		data.sovereign.region.declared_failures,
		data.sovereign.compliance.declared_failures,
		own_failures,
	]),
	"obligations": [],
	"tools": tools,
}
