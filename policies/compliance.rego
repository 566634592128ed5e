# Does the agent keep the sets of rules that it asks for (SOC 2, GDPR, …)? Each set says, with its clause, which model
# providers, places, regions and data access levels an agent under it may have; asking for several means all of them.
#
# input: principal {tenant}, agent {compliance, model, network_access, region, data_access_level}
package sovereign.compliance

import rego.v1

agent := input.agent

default compliance_supported := false

compliance_supported if {
	is_array(agent.compliance)
	every name in agent.compliance {
		is_object(data.catalog.compliance[name])
		name in data.sovereign.terms.plan.compliance
	}
}

# The sets asked for that there are, with what they say; a name that is none is refused above.
asked := {name: rule | some name in agent.compliance; rule := data.catalog.compliance[name]}

provider := split(agent.model, ":")[0]

default compliance_providers := false

compliance_providers if {
	is_array(agent.compliance)
	is_string(provider)
	every rule in asked {
		provider in rule.providers.allowed
	}
}

default compliance_egress := false

compliance_egress if {
	is_array(agent.compliance)
	is_array(agent.network_access)
	every rule in asked {
		every place in agent.network_access {
			place in rule.egress.allowed
		}
	}
}

default compliance_regions := false

compliance_regions if {
	is_array(agent.compliance)
	is_string(agent.region)
	every rule in asked {
		agent.region in rule.regions.allowed
	}
}

default compliance_data_access := false

compliance_data_access if {
	is_array(agent.compliance)
	is_string(agent.data_access_level)
	every rule in asked {
		agent.data_access_level in rule.data_access_levels.allowed
	}
}

# What an agent's declaration is held to.
declared_checks := {
	"compliance_supported": compliance_supported,
	"compliance_providers": compliance_providers,
	"compliance_egress": compliance_egress,
	"compliance_regions": compliance_regions,
	"compliance_data_access": compliance_data_access,
}

checks := object.union(declared_checks, {"tenant_active": data.sovereign.terms.tenant_active})

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

declared_failures["compliance_supported"] := sprintf(
	"Plan %s does not support %s. Leave it out, or choose of: %s.",
	[data.sovereign.terms.tenant.plan, concat(", ", sort(refused)), concat(", ", data.sovereign.terms.plan.compliance)],
) if {
	not compliance_supported
	refused := {n | some n in agent.compliance; not n in data.sovereign.terms.plan.compliance}
}

declared_failures["compliance_providers"] := sprintf(
	"The model provider %s is not one for agents under %s. Choose a model of another provider, or leave the set out.",
	[provider, concat("; ", against)],
) if {
	not compliance_providers
	against := sort({said(name, rule.clause) |
		some name, set in asked
		rule := set.providers
		not provider in rule.allowed
	})
}

declared_failures["compliance_egress"] := sprintf(
	"Network access goes beyond %s. Leave out what is not in the set's list, or leave the set out.",
	[concat("; ", against)],
) if {
	not compliance_egress
	against := sort({said(name, rule.clause) |
		some name, set in asked
		rule := set.egress
		some place in agent.network_access
		not place in rule.allowed
	})
}

declared_failures["compliance_regions"] := sprintf(
	"The region %s is not one for agents under %s. Set the node label region to another, or leave the set out.",
	[agent.region, concat("; ", against)],
) if {
	not compliance_regions
	against := sort({said(name, rule.clause) |
		some name, set in asked
		rule := set.regions
		not agent.region in rule.allowed
	})
}

declared_failures["compliance_data_access"] := sprintf(
	"The data access level %s goes beyond %s. Choose a lower level, or leave the set out.",
	[agent.data_access_level, concat("; ", against)],
) if {
	not compliance_data_access
	against := sort({said(name, rule.clause) |
		some name, set in asked
		rule := set.data_access_levels
		not agent.data_access_level in rule.allowed
	})
}

said(name, clause) := sprintf("%s (%s)", [name, clause])

own_failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

decision := {
	"allow": allow,
	"checks": checks,
	"failures": object.union(declared_failures, own_failures),
	"obligations": [],
	"tools": [],
}
