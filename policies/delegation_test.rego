package sovereign.delegation_test

import rego.v1

good := {
	"principal": {"tenant": "acme"},
	"parent": {
		"tenant": "acme",
		"agent_id": "planner-1",
		"scopes": ["sovereign:agents:invoke", "sovereign:usage:read"],
		"tools": ["search", "report", "ask_agent"],
		"network_access": ["outside"],
		"data_access_level": "private",
		"expires_us": 2000,
		"depth": 0,
	},
	"child": {
		"tenant": "acme",
		"agent_id": "worker-1",
		"scopes": ["sovereign:agents:invoke"],
		"tools": ["search"],
		"network_access": [],
		"data_access_level": "public",
		"expires_us": 2000,
		"depth": 1,
	},
}

child(fields) := object.union(good, {"child": object.union(object.remove(good.child, object.keys(fields)), fields)})

parent(fields) := object.union(good, {"parent": object.union(object.remove(good.parent, object.keys(fields)), fields)})

decided(doc) := answer if {
	catalog := data.sovereign.terms_test.catalog
	answer := data.sovereign.delegation.decision with input as doc with data.catalog as catalog
}

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_a_parent_without_the_tool_hands_nothing_on if {
	failed(parent({"tools": ["search", "report"]})) == {"parent_may_delegate"}
}

test_fewer_rights_may_be_handed_on if decided(good).allow == true

test_the_same_rights_may_be_handed_on if {
	same := object.union(good.parent, {"agent_id": "worker-1", "depth": 1})
	decided(object.union(good, {"child": same})).allow == true
}

test_a_child_gets_no_right_that_its_parent_lacks if {
	failed(child({"scopes": ["sovereign:agents:remove"]})) == {"scopes_within_parent"}
	failed(child({"tools": ["search", "compute"]})) == {"tools_within_parent"}
	failed(child({"network_access": ["inside"]})) == {"egress_within_parent"}
	failed(child({"data_access_level": "secret"})) == {"data_access_within_parent"}
}

test_a_refusal_names_what_is_beyond if {
	contains(decided(child({"scopes": ["z", "sovereign:agents:remove"]})).failures.scopes_within_parent, "sovereign:agents:remove, z")
	contains(decided(child({"tools": ["search", "compute"]})).failures.tools_within_parent, "tools compute.")
	contains(decided(child({"network_access": ["inside"]})).failures.egress_within_parent, "inside")
	contains(decided(child({"data_access_level": "secret"})).failures.data_access_within_parent, "private")
}

test_a_child_does_not_outlive_its_parent if {
	failed(child({"expires_us": 2001})) == {"lifetime_within_parent"}
	failed(child({"expires_us": "1"})) == {"lifetime_within_parent"}
	decided(child({"expires_us": 2001})).failures.lifetime_within_parent
}

test_a_chain_is_as_short_as_the_plan_says if {
	decided(object.union(good, {"parent": {"depth": 1}, "child": {"depth": 2}})).allow == true
	failed(object.union(good, {"parent": {"depth": 2}, "child": {"depth": 3}})) == {"depth_within_plan"}
	failed(child({"depth": 2})) == {"depth_within_plan"}
	failed(object.union(good, {"parent": {"depth": -1}, "child": {"depth": 0}})) == {"depth_within_plan"}
	contains(decided(child({"depth": 2})).failures.depth_within_plan, "2 times")
}

test_another_tenant if {
	failed(child({"tenant": "globex"})) == {"same_tenant"}
	failed(parent({"tenant": "globex"})) == {"same_tenant"}
	decided(child({"tenant": "globex"})).failures.same_tenant
}

test_itself if {
	failed(child({"agent_id": "planner-1"})) == {"not_itself"}
	decided(child({"agent_id": "planner-1"})).failures.not_itself
}

test_each_field_is_needed if {
	every field in object.keys(good.child) {
		decided(object.union(object.remove(good, ["child"]), {"child": object.remove(good.child, [field])})).allow == false
		decided(object.union(object.remove(good, ["parent"]), {"parent": object.remove(good.parent, [field])})).allow == false
	}
}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active", "same_tenant"}
	decided(doc).failures.tenant_active
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
