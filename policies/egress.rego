# May a tool of this agent fetch from there? `grant` names all hosts that it may, when it wakes; the host's own check of each
# fetch holds its tools to them, and to addresses of the public internet.
#
# input: principal {tenant}, agent {network_access}, destination {scheme, host (lower case), port}
package sovereign.egress

import rego.v1

port_of := {"http": 80, "https": 443}

# Places that the agent declared and its plan still has.
places contains name if {
	data.sovereign.terms.tenant_active
	some name in input.agent.network_access
	name in data.sovereign.terms.plan.egress
}

hosts contains host if {
	some name in places
	some host in data.catalog.egress[name].hosts
}

default scheme_allowed := false

scheme_allowed if is_number(port_of[input.destination.scheme])

default port_allowed := false

port_allowed if input.destination.port == port_of[input.destination.scheme]

default destination_declared := false

destination_declared if {
	is_array(input.agent.network_access)
	some name in input.agent.network_access
	some pattern in data.catalog.egress[name].hosts
	host_matches(pattern)
}

default destination_allowed := false

destination_allowed if {
	some pattern in hosts
	host_matches(pattern)
}

host_matches(pattern) if {
	is_string(input.destination.host)
	pattern == input.destination.host
}

# Any name below, and not the name itself.
host_matches(pattern) if {
	startswith(pattern, "*.")
	endswith(input.destination.host, trim_prefix(pattern, "*"))
	count(input.destination.host) > count(pattern) - 1
}

checks := {
	"tenant_active": data.sovereign.terms.tenant_active,
	"scheme_allowed": scheme_allowed,
	"port_allowed": port_allowed,
	"destination_declared": destination_declared,
	"destination_allowed": destination_allowed,
}

default allow := false

allow if {
	every _, passed in checks {
		passed == true
	}
}

failures["tenant_active"] := data.sovereign.terms.not_active if not data.sovereign.terms.tenant_active

failures["scheme_allowed"] := sprintf("Tools fetch by http and https, not by %s.", [input.destination.scheme]) if {
	not scheme_allowed
}

failures["port_allowed"] := sprintf("Tools fetch from the usual port of http (80) and https (443), not from %v.", [port]) if {
	not port_allowed
	port := input.destination.port
}

failures["destination_declared"] := sprintf(
	"The agent declared no network access that %s belongs to. Register it with one that has the host.",
	[input.destination.host],
) if {
	not destination_declared
}

failures["destination_allowed"] := sprintf(
	"Plan %s does not reach %s. Have an operator add a place of egress.yaml that has the host to the plan.",
	[data.sovereign.terms.tenant.plan, input.destination.host],
) if {
	not destination_allowed
}

decision := {
	"allow": allow,
	"checks": checks,
	"failures": failures,
	"obligations": [],
	"tools": [],
}

grant := {"hosts": sort(hosts)}
