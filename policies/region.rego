# May the agent be in its region, and on this node? An agent's region is its node label `region`; one without is
# `unspecified`, and may be wherever there is room. Placement holds it there: Ray starts it on nodes of that label alone.
#
# input: principal {tenant}, agent {region}, node {region}
package sovereign.region

import rego.v1

default region_allowed := false

region_allowed if {
	is_object(data.catalog.regions[input.agent.region])
	input.agent.region in data.sovereign.terms.plan.regions
}

default node_in_region := false

node_in_region if {
	is_string(input.node.region)
	input.agent.region == "unspecified"
}

node_in_region if {
	is_string(input.agent.region)
	input.node.region == input.agent.region
}

# What an agent's declaration is held to, before there is a node.
declared_checks := {"region_allowed": region_allowed}

checks := {
	"tenant_active": data.sovereign.terms.tenant_active,
	"region_allowed": region_allowed,
	"node_in_region": node_in_region,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

declared_failures["region_allowed"] := sprintf(
	"Plan %s has no agents in the region %s. Set the node label region to one of: %s.",
	[data.sovereign.terms.tenant.plan, input.agent.region, concat(", ", data.sovereign.terms.plan.regions)],
) if {
	not region_allowed
}

own_failures["node_in_region"] := sprintf(
	"The node is in %s and the agent's region is %s. Place it on a node with the label region=%s.",
	[input.node.region, input.agent.region, input.agent.region],
) if {
	not node_in_region
}

own_failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

decision := {
	"allow": allow,
	"checks": checks,
	"failures": object.union(declared_failures, own_failures),
	"obligations": [],
	"tools": [],
}
