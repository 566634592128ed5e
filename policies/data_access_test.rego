package sovereign.data_access_test

import rego.v1

good := object.union(data.sovereign.terms_test.good, {"data": {"class": "open"}, "operation": "read"})

catalog := object.union(
	data.sovereign.terms_test.catalog,
	{"plans": {"small": object.union(
		data.sovereign.terms_test.catalog.plans.small,
		{"data_access_levels": ["public", "private", "secret"]},
	)}},
)

decided(doc) := decided_by(doc, data.sovereign.terms_test.catalog)

decided_by(doc, known) := answer if answer := data.sovereign.data_access.decision with input as doc with data.catalog as known

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

declared(doc, known) := checks if checks := data.sovereign.data_access.declared_checks with input as doc with data.catalog as known

of_level(level) := object.union(good, {"agent": object.union(good.agent, {"data_access_level": level})})

test_what_the_level_opens_may_be_read if {
	decided(good).allow == true
	decided(object.union(of_level("private"), {"data": {"class": "closed"}})).allow == true
}

test_what_the_level_does_not_open_may_not if {
	doc := object.union(good, {"data": {"class": "closed"}})
	failed(doc) == {"operation_within_level"}
	contains(decided(doc).failures.operation_within_level, "closed")
}

test_reading_gives_no_writing if {
	failed(object.union(of_level("private"), {"operation": "write", "data": {"class": "closed"}})) == {"operation_within_level"}
	doc := object.union(of_level("secret"), {"operation": "write", "data": {"class": "closed"}})
	decided_by(doc, catalog).allow == true
}

test_level_of_another_plan if {
	doc := of_level("secret")
	failed(doc) == {"data_access_level_allowed"}
	contains(decided(doc).failures.data_access_level_allowed, "public, private")
}

test_unknown_level if {
	failed(of_level("any")) == {"data_access_level_allowed", "operation_known", "operation_within_level"}
}

test_unknown_class if {
	doc := object.union(good, {"data": {"class": "gossip"}})
	failed(doc) == {"data_class_known", "operation_within_level"}
	contains(decided(doc).failures.data_class_known, "closed, open")
}

test_unknown_operation if {
	doc := object.union(good, {"operation": "own"})
	failed(doc) == {"operation_known", "operation_within_level"}
	contains(decided(doc).failures.operation_known, "own")
}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active"}
	decided(doc).failures.tenant_active
}

test_a_tool_needs_a_level_that_covers_it if {
	reporting := object.union(good, {"agent": object.union(good.agent, {"allowed_tools": ["search", "report"]})})
	declared(reporting, data.sovereign.terms_test.catalog) == {
		"data_access_level_allowed": true,
		"tools_within_data_access_level": false,
	}
	known := catalog
	said := data.sovereign.data_access.declared_failures with input as reporting with data.catalog as known
	contains(said.tools_within_data_access_level, "report")
	able := object.union(reporting, {"agent": object.union(reporting.agent, {"data_access_level": "secret"})})
	declared(able, catalog).tools_within_data_access_level == true
}

test_a_name_that_is_no_tool_is_left_to_another_check if {
	odd := object.union(good, {"agent": object.union(good.agent, {"allowed_tools": ["search", "shell"]})})
	declared(odd, data.sovereign.terms_test.catalog).tools_within_data_access_level == true
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
