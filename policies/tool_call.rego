# May this agent run this tool? Asked for every tool when the agent wakes; the grant that its process gets is held to at
# each call, by the exact name.
#
# input: principal {tenant}, agent {capabilities, data_access_level}, tools [granted at admission], tool
package sovereign.tool_call

import rego.v1

# Of what was granted at admission, what today's policy still gives.
callable_tools contains tool if {
	some tool in input.tools
	data.catalog.tools[tool]
	tool in data.sovereign.terms.following_tools
	data.sovereign.data_access.tool_within_level(tool)
}

default tool_known := false

tool_known if is_object(data.catalog.tools[input.tool])

default tool_granted := false

tool_granted if {
	is_array(input.tools)
	input.tool in input.tools
}

default tool_follows := false

tool_follows if input.tool in data.sovereign.terms.following_tools

default tool_within_data_access_level := false

tool_within_data_access_level if data.sovereign.data_access.tool_within_level(input.tool)

checks := {
	"tenant_active": data.sovereign.terms.tenant_active,
	"tool_known": tool_known,
	"tool_granted": tool_granted,
	"tool_follows": tool_follows,
	"tool_within_data_access_level": tool_within_data_access_level,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

failures["tool_known"] := sprintf("There is no tool %s. Tools are called by their exact names.", [input.tool]) if {
	not tool_known
}

failures["tool_granted"] := sprintf(
	"The tool %s was not granted to this agent. Register it with a capability that gives the tool.",
	[input.tool],
) if {
	not tool_granted
}

failures["tool_follows"] := sprintf(
	"No capability of the agent gives %s today. Register it with one that does.",
	[input.tool],
) if {
	not tool_follows
}

failures["tool_within_data_access_level"] := sprintf(
	"The data access level %s does not cover what %s reads or writes. Register the agent with a level that does.",
	[input.agent.data_access_level, input.tool],
) if {
	not tool_within_data_access_level
}

default tools := []

tools := [input.tool] if allow

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": [],
	"tools": tools,
}
