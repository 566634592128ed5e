package sovereign.region_test

import rego.v1

good := in_region("eu", "eu")

in_region(asked, there) := {
	"principal": {"tenant": "acme"},
	"agent": {"region": asked},
	"node": {"region": there},
}

decided(doc) := answer if {
	catalog := data.sovereign.terms_test.catalog
	answer := data.sovereign.region.decision with input as doc with data.catalog as catalog
}

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_a_node_of_the_region if decided(good).allow == true

test_a_node_elsewhere if {
	failed(in_region("eu", "us")) == {"node_in_region"}
	contains(decided(in_region("eu", "us")).failures.node_in_region, "us")
}

test_no_region_is_any_node if {
	decided(in_region("unspecified", "us")).allow == true
	decided(in_region("unspecified", "unspecified")).allow == true
}

test_a_region_of_another_plan if {
	failed(in_region("moon", "moon")) == {"region_allowed"}
	contains(decided(in_region("moon", "moon")).failures.region_allowed, "unspecified, eu, us")
}

test_an_unknown_region if failed(in_region("mars", "mars")) == {"region_allowed"}

test_a_node_without_a_region if failed(object.remove(good, ["node"])) == {"node_in_region"}

test_an_agent_without_a_region if failed(object.remove(good, ["agent"])) == {"region_allowed", "node_in_region"}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active"}
	decided(doc).failures.tenant_active
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
