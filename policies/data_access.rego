# May an agent do this with data of that class? At admission and at each wake: is its data access level one of its plan, and
# does it cover what its tools read and write?
#
# input: principal {tenant}, agent {data_access_level, capabilities, allowed_tools}, data {class}, operation (read, write)
package sovereign.data_access

import rego.v1

level := data.catalog.data_access_levels[input.agent.data_access_level]

# The classes of data that the level opens, by what is done with them.
opened := {"read": level.reads, "write": level.writes}

default data_access_level_allowed := false

data_access_level_allowed if {
	is_object(level)
	input.agent.data_access_level in data.sovereign.terms.plan.data_access_levels
}

default tools_within_data_access_level := false

tools_within_data_access_level if {
	every tool in data.sovereign.terms.wanted_tools {
		covered(tool)
	}
}

covered(name) if tool_within_level(name)

# A name that is no tool is refused by another check, which says so.
covered(name) if not data.catalog.tools[name]

tool_within_level(name) if {
	tool := data.catalog.tools[name]
	every class in tool.reads {
		class in level.reads
	}
	every class in tool.writes {
		class in level.writes
	}
}

# What an agent's declaration is held to, before there is any data.
declared_checks := {
	"data_access_level_allowed": data_access_level_allowed,
	"tools_within_data_access_level": tools_within_data_access_level,
}

default data_class_known := false

data_class_known if is_object(data.catalog.data_classes[input.data.class])

default operation_known := false

operation_known if is_array(opened[input.operation])

default operation_within_level := false

operation_within_level if input.data.class in opened[input.operation]

checks := {
	"tenant_active": data.sovereign.terms.tenant_active,
	"data_access_level_allowed": data_access_level_allowed,
	"data_class_known": data_class_known,
	"operation_known": operation_known,
	"operation_within_level": operation_within_level,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

declared_failures["data_access_level_allowed"] := sprintf(
	"Plan %s does not include the data access level %s. Choose one of: %s.",
	[data.sovereign.terms.tenant.plan, input.agent.data_access_level, concat(", ", data.sovereign.terms.plan.data_access_levels)],
) if {
	not data_access_level_allowed
}

declared_failures["tools_within_data_access_level"] := sprintf(
	"The data access level %s does not cover what %s reads or writes. Leave it out, or choose a level that does.",
	[input.agent.data_access_level, concat(", ", sort(refused))],
) if {
	not tools_within_data_access_level
	refused := {t | some t in data.sovereign.terms.wanted_tools; not covered(t)}
}

own_failures["data_class_known"] := sprintf(
	"There is no class of data %s. Choose one of: %s.",
	[input.data.class, concat(", ", sort(object.keys(data.catalog.data_classes)))],
) if {
	not data_class_known
}

own_failures["operation_known"] := sprintf("There is no operation %s. Choose read or write.", [input.operation]) if {
	not operation_known
}

own_failures["operation_within_level"] := sprintf(
	"The data access level %s gives no %s of %s data. Register the agent with a level that does.",
	[input.agent.data_access_level, input.operation, input.data.class],
) if {
	not operation_within_level
}

own_failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

failures := {name: sentence | some name, sentence in object.union(declared_failures, own_failures); name in object.keys(checks)}

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": [],
	"tools": [],
}
