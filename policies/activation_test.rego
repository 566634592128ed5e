package sovereign.activation_test

import rego.v1

good := object.union(data.sovereign.terms_test.good, {"tools": ["search"], "state": "passive"})

decided(doc) := decided_by(doc, data.sovereign.terms_test.catalog)

decided_by(doc, catalog) := answer if answer := data.sovereign.activation.decision with input as doc with data.catalog as catalog

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_unchanged_terms_wake if {
	decided(good).allow == true
	decided(good).tools == ["search"]
}

test_revoked_agent_does_not_wake if failed(object.union(good, {"state": "revoked"})) == {"state_passive"}

test_agent_without_a_state_does_not_wake if failed(object.remove(good, ["state"])) == {"state_passive"}

test_lost_capability_does_not_wake if {
	lost := object.union(data.sovereign.terms_test.catalog, {"plans": {"small": {"capabilities": ["forecast"]}}})
	answer := decided_by(good, lost)
	answer.allow == false
	answer.checks.capability_allowed == false
}

test_lost_tool_does_not_wake if {
	lost := object.union(data.sovereign.terms_test.catalog, {"capabilities": {"research": {"tools": ["report"]}}})
	answer := decided_by(good, lost)
	answer.checks.tools_still_granted == false
	contains(answer.failures.tools_still_granted, "search")
}

test_suspended_tenant_does_not_wake if {
	failed(object.union(good, {"principal": {"tenant": "gone"}})) == {"tenant_active"}
}

test_tools_are_needed if failed(object.remove(good, ["tools"])) == {"tools_still_granted"}

test_nothing_wakes_for_an_empty_input if decided({}).allow == false
