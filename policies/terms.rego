# What holds for an agent at its admission and again whenever it wakes: its declared terms against its tenant's plan.
#
# Each check is positive and named, and false unless it is shown to be true: a missing or odd field can only deny.
package sovereign.terms

import rego.v1

catalog := data.catalog

agent := input.agent

# A tenant is as the data declares it; of one that was made at run time governance says how it stands.
tenant := catalog.tenants[input.principal.tenant]

tenant := input.standing if not catalog.tenants[input.principal.tenant]

plan := catalog.plans[tenant.plan]

default tenant_active := false

tenant_active if {
	tenant.active == true
	is_object(plan)
}

default agent_type_allowed := false

agent_type_allowed if {
	catalog.agent_types[agent.agent_type]
	agent.agent_type in plan.agent_types
}

default capability_allowed := false

capability_allowed if {
	is_array(agent.capabilities)
	count(agent.capabilities) > 0
	every capability in agent.capabilities {
		catalog.capabilities[capability]
		capability in plan.capabilities
	}
}

# Tools follow from capabilities; nothing else gives a tool.
following_tools contains tool if {
	some capability in agent.capabilities
	some tool in catalog.capabilities[capability].tools
}

# Null asks for every tool that follows, of capabilities that are listed; a list, also an empty one, asks for exactly its tools.
wanted_tools := following_tools if {
	agent.allowed_tools == null
	is_array(agent.capabilities)
}

wanted_tools := {tool | some tool in agent.allowed_tools} if is_array(agent.allowed_tools)

default tools_follow := false

tools_follow if {
	every tool in wanted_tools {
		catalog.tools[tool]
		tool in following_tools
	}
}

default model_allowed := false

model_allowed if {
	is_string(agent.model)
	catalog.models[split(agent.model, ":")[0]]
	some pattern in plan.models
	model_matches(pattern)
}

model_matches(pattern) if pattern == agent.model

model_matches(pattern) if {
	endswith(pattern, ":*")
	startswith(agent.model, trim_suffix(pattern, "*"))
}

default resources_within_plan := false

resources_within_plan if {
	within(agent.cpu_milli, plan.agent_limits.cpu_milli)
	within(agent.memory_bytes, plan.agent_limits.memory_bytes)
}

within(amount, bounds) if {
	is_number(amount)
	amount >= bounds.min
	amount <= bounds.max
}

default network_access_allowed := false

network_access_allowed if {
	is_array(agent.network_access)
	every name in agent.network_access {
		catalog.egress[name]
		name in plan.egress
	}
}

default iterations_within_plan := false

iterations_within_plan if within(agent.max_iterations, {"min": 1, "max": plan.max_iterations})

default replicas_within_plan := false

replicas_within_plan if within(agent.replicas, {"min": 1, "max": plan.max_replicas})

checks := {
	"tenant_active": tenant_active,
	"agent_type_allowed": agent_type_allowed,
	"capability_allowed": capability_allowed,
	"tools_follow": tools_follow,
	"model_allowed": model_allowed,
	"resources_within_plan": resources_within_plan,
	"network_access_allowed": network_access_allowed,
	"iterations_within_plan": iterations_within_plan,
	"replicas_within_plan": replicas_within_plan,
}

# What to change, one sentence a check. A sentence that can't be said leaves the check failed all the same.
# By itself, for other policies to say too.
not_active := sprintf(
	"Tenant %s is not active here. An operator makes or resumes it, or activates it in tenants.yaml.",
	[input.principal.tenant],
) if {
	not tenant_active
}

failures["tenant_active"] := not_active if not tenant_active

failures["agent_type_allowed"] := sprintf(
	"Plan %s has no agents of type %s. Choose one of: %s.",
	[tenant.plan, agent.agent_type, concat(", ", plan.agent_types)],
) if {
	not agent_type_allowed
}

failures["capability_allowed"] := sprintf(
	"Plan %s does not include %s. Leave it out, or have an operator add it to the plan.",
	[tenant.plan, concat(", ", sort(refused))],
) if {
	not capability_allowed
	refused := {c | some c in agent.capabilities; not c in plan.capabilities}
}

failures["tools_follow"] := sprintf(
	"No capability asked for gives %s. Leave it out, or ask for a capability that gives it.",
	[concat(", ", sort(refused))],
) if {
	not tools_follow
	refused := {t | some t in wanted_tools; not t in following_tools}
}

failures["model_allowed"] := sprintf(
	"Plan %s does not include the model %s. Choose one of: %s.",
	[tenant.plan, agent.model, concat(", ", plan.models)],
) if {
	not model_allowed
}

failures["resources_within_plan"] := sprintf(
	"One agent of plan %s takes %s to %s CPU and %s to %s memory. Change resource_limits.",
	[tenant.plan, cpu.min_text, cpu.max_text, memory.min_text, memory.max_text],
) if {
	not resources_within_plan
	cpu := plan.agent_limits.cpu_milli
	memory := plan.agent_limits.memory_bytes
}

failures["network_access_allowed"] := sprintf(
	"Plan %s does not reach %s. Leave it out, or have an operator add it to the plan.",
	[tenant.plan, concat(", ", sort(refused))],
) if {
	not network_access_allowed
	refused := {n | some n in agent.network_access; not n in plan.egress}
}

failures["iterations_within_plan"] := sprintf(
	"Plan %s allows 1 to %d model iterations a call. Change max_iterations.",
	[tenant.plan, plan.max_iterations],
) if {
	not iterations_within_plan
}

failures["replicas_within_plan"] := sprintf(
	"Plan %s allows 1 to %d replicas of an agent. Change max_replicas.",
	[tenant.plan, plan.max_replicas],
) if {
	not replicas_within_plan
}
