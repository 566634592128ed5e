package sovereign.tool_call_test

import rego.v1

good := object.union(data.sovereign.terms_test.good, {"tools": ["search"], "tool": "search"})

decided(doc) := decided_by(doc, data.sovereign.terms_test.catalog)

decided_by(doc, catalog) := answer if answer := data.sovereign.tool_call.decision with input as doc with data.catalog as catalog

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_a_granted_tool_runs if {
	decided(good).allow == true
	decided(good).tools == ["search"]
}

test_a_tool_that_was_not_granted if {
	doc := object.union(good, {"tool": "compute"})
	failed(doc) == {"tool_granted", "tool_follows"}
	contains(decided(doc).failures.tool_granted, "compute")
	contains(decided(doc).failures.tool_follows, "compute")
	decided(doc).tools == []
}

test_another_spelling_is_another_tool if {
	every name in ["Search", "search ", "data.search", ""] {
		"tool_known" in failed(object.union(good, {"tool": name}))
	}
	contains(decided(object.union(good, {"tool": "Search"})).failures.tool_known, "Search")
}

test_a_tool_that_no_capability_gives_any_more if {
	lost := object.union(data.sovereign.terms_test.catalog, {"capabilities": {"research": {"tools": ["report"]}}})
	answer := decided_by(good, lost)
	answer.checks.tool_follows == false
	answer.allow == false
}

test_a_tool_beyond_the_data_access_level if {
	doc := object.union(good, {"tools": ["report"], "tool": "report"})
	failed(doc) == {"tool_within_data_access_level"}
	contains(decided(doc).failures.tool_within_data_access_level, "report")
}

test_callable_tools_are_what_each_call_would_get if {
	doc := object.union(good, {"tools": ["search", "report", "compute", "shell"]})
	catalog := data.sovereign.terms_test.catalog
	found := data.sovereign.tool_call.callable_tools with input as doc with data.catalog as catalog
	found == {"search"}
	found == {tool | some tool in doc.tools; decided(object.union(doc, {"tool": tool})).allow}
}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active"}
	decided(doc).failures.tenant_active
}

test_tools_are_needed if failed(object.remove(good, ["tools"])) == {"tool_granted"}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
