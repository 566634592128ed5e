package sovereign.compliance_test

import rego.v1

good := object.union(data.sovereign.terms_test.good, {"agent": object.union(data.sovereign.terms_test.good.agent, {"compliance": ["SOC2"]})})

# Keeps both sets.
strict := changed({"compliance": ["SOC2", "GDPR"], "region": "eu", "network_access": []})

changed(fields) := object.union(object.remove(good, ["agent"]), {"agent": with_fields(good.agent, fields)})

stricter(fields) := object.union(object.remove(strict, ["agent"]), {"agent": with_fields(strict.agent, fields)})

# Not object.union, which would keep what a nested value had.
with_fields(agent, fields) := object.union(object.remove(agent, object.keys(fields)), fields)

decided(doc) := answer if {
	catalog := data.sovereign.terms_test.catalog
	answer := data.sovereign.compliance.decision with input as doc with data.catalog as catalog
}

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_no_set_asks_for_nothing if decided(changed({"compliance": [], "region": "moon"})).allow == true

test_a_set_that_is_kept if {
	decided(good).allow == true
	decided(strict).allow == true
}

test_a_set_of_another_plan if {
	"compliance_supported" in failed(changed({"compliance": ["SOC2", "HIPAA"]}))
	said := decided(changed({"compliance": ["SOC2", "HIPAA"]})).failures.compliance_supported
	contains(said, "support HIPAA.")
}

test_an_unknown_set if failed(changed({"compliance": ["SOC2", "soc2"]})) == {"compliance_supported"}

test_a_provider_outside_the_set if {
	doc := stricter({"model": "openai:gpt-5"})
	failed(doc) == {"compliance_providers"}
	contains(decided(doc).failures.compliance_providers, "GDPR (g1)")
	not contains(decided(doc).failures.compliance_providers, "SOC2")
}

test_a_place_outside_the_set if {
	doc := stricter({"network_access": ["outside"]})
	failed(doc) == {"compliance_egress"}
	contains(decided(doc).failures.compliance_egress, "GDPR (g2)")
}

test_a_region_outside_the_set if {
	doc := stricter({"region": "unspecified"})
	failed(doc) == {"compliance_regions"}
	contains(decided(doc).failures.compliance_regions, "GDPR (g3)")
}

test_a_level_outside_the_set if {
	doc := stricter({"data_access_level": "private"})
	failed(doc) == {"compliance_data_access"}
	contains(decided(doc).failures.compliance_data_access, "GDPR (g4)")
}

test_each_field_is_needed if {
	every field in ["compliance", "model", "network_access", "region", "data_access_level"] {
		doc := object.union(object.remove(strict, ["agent"]), {"agent": object.remove(strict.agent, [field])})
		decided(doc).allow == false
	}
}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active"}
	decided(doc).failures.tenant_active
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
