package sovereign.terms_test

import rego.v1

catalog := {
	"tenants": {
		"acme": {"plan": "small", "active": true},
		"gone": {"plan": "small", "active": false},
	},
	"plans": {"small": {
		"agent_limits": {
			"cpu_milli": {"min": 10, "max": 1000, "min_text": "10m", "max_text": "1"},
			"memory_bytes": {"min": 1024, "max": 4096, "min_text": "1Ki", "max_text": "4Ki"},
		},
		"max_iterations": 20,
		"max_replicas": 1,
		"capabilities": ["research", "forecast"],
		"agent_types": ["planner"],
		"models": ["local:*", "openai:gpt-5"],
		"egress": ["outside"],
		"data_access_levels": ["public", "private"],
		"compliance": ["SOC2", "GDPR"],
		"regions": ["unspecified", "eu", "us"],
		"max_delegation_depth": 2,
	}},
	"capabilities": {
		"research": {"tools": ["search", "report"], "obligations": []},
		"forecast": {"tools": ["compute"], "obligations": []},
		"payment": {"tools": [], "obligations": ["human_approval"]},
	},
	"tools": {
		"search": {"reads": ["open"], "writes": []},
		"report": {"reads": [], "writes": ["closed"]},
		"compute": {"reads": [], "writes": []},
	},
	"agent_types": {"planner": {}, "robot": {}},
	"egress": {
		"outside": {"hosts": ["*.example.org", "example.com"]},
		"inside": {"hosts": ["intranet.example.net"]},
	},
	"data_classes": {"open": {}, "closed": {}},
	"data_access_levels": {
		"public": {"reads": ["open"], "writes": []},
		"private": {"reads": ["open", "closed"], "writes": []},
		"secret": {"reads": ["open", "closed"], "writes": ["closed"]},
	},
	"regions": {"unspecified": {}, "eu": {}, "us": {}, "moon": {}},
	"compliance": {
		"SOC2": {
			"providers": {"clause": "s1", "allowed": ["local", "openai"]},
			"egress": {"clause": "s2", "allowed": ["outside", "inside"]},
			"regions": {"clause": "s3", "allowed": ["unspecified", "eu", "us"]},
			"data_access_levels": {"clause": "s4", "allowed": ["public", "private", "secret"]},
		},
		"GDPR": {
			"providers": {"clause": "g1", "allowed": ["local"]},
			"egress": {"clause": "g2", "allowed": []},
			"regions": {"clause": "g3", "allowed": ["eu"]},
			"data_access_levels": {"clause": "g4", "allowed": ["public"]},
		},
		"HIPAA": {
			"providers": {"clause": "h1", "allowed": []},
			"egress": {"clause": "h2", "allowed": []},
			"regions": {"clause": "h3", "allowed": []},
			"data_access_levels": {"clause": "h4", "allowed": []},
		},
	},
	"models": {"local": {}, "openai": {}},
}

good := {
	"principal": {"tenant": "acme"},
	"agent": {
		"agent_id": "planner-1",
		"agent_type": "planner",
		"capabilities": ["research"],
		"allowed_tools": ["search"],
		"model": "local:small",
		"cpu_milli": 100,
		"memory_bytes": 2048,
		"network_access": ["outside"],
		"data_access_level": "public",
		"compliance": ["SOC2"],
		"max_iterations": 10,
		"replicas": 1,
		"region": "unspecified",
	},
}

changed(field, value) := object.union(good, {"agent": object.union(good.agent, {field: value})})

without(field) := object.union(object.remove(good, ["agent"]), {"agent": object.remove(good.agent, [field])})

failed(doc) := {name | some name, passed in checks; passed != true} if {
	checks := data.sovereign.terms.checks with input as doc with data.catalog as catalog
}

test_good_terms_pass if failed(good) == set()

test_tenant_must_be_known if "tenant_active" in failed(object.union(good, {"principal": {"tenant": "nobody"}}))

test_tenant_must_be_active if "tenant_active" in failed(object.union(good, {"principal": {"tenant": "gone"}}))

test_agent_type_of_another_plan if failed(changed("agent_type", "robot")) == {"agent_type_allowed"}

test_capability_of_another_plan if failed(changed("capabilities", ["research", "payment"])) == {"capability_allowed"}

test_unknown_capability if failed(changed("capabilities", ["research", "magic"])) == {"capability_allowed"}

test_no_capability_at_all if "capability_allowed" in failed(changed("capabilities", []))

test_the_refused_capabilities_are_named if {
	said := data.sovereign.terms.failures.capability_allowed with input as changed("capabilities", ["zeal", "payment", "research"])
		with data.catalog as catalog
	contains(said, "payment, zeal")
	not contains(said, "research")
}

test_tools_follow_from_capabilities if {
	data.sovereign.terms.following_tools == {"search", "report"} with input as good with data.catalog as catalog
}

test_tool_of_another_capability if failed(changed("allowed_tools", ["search", "compute"])) == {"tools_follow"}

test_tool_in_another_case if failed(changed("allowed_tools", ["Search"])) == {"tools_follow"}

test_unknown_tool if failed(changed("allowed_tools", ["shell"])) == {"tools_follow"}

test_no_tools_are_fine if failed(changed("allowed_tools", [])) == set()

test_all_tools_that_follow if {
	data.sovereign.terms.wanted_tools == {"search", "report"} with input as changed("allowed_tools", null) with data.catalog as catalog
}

test_model_by_provider_and_by_name if {
	failed(changed("model", "local:anything")) == set()
	failed(changed("model", "openai:gpt-5")) == set()
}

test_model_outside_the_plan if {
	failed(changed("model", "openai:gpt-6")) == {"model_allowed"}
	failed(changed("model", "localx:small")) == {"model_allowed"}
	failed(changed("model", "local")) == {"model_allowed"}
}

test_resources_outside_the_plan if {
	failed(changed("cpu_milli", 9)) == {"resources_within_plan"}
	failed(changed("cpu_milli", 1001)) == {"resources_within_plan"}
	failed(changed("memory_bytes", 5000)) == {"resources_within_plan"}
}

test_resources_of_a_wrong_type if {
	failed(changed("cpu_milli", "100")) == {"resources_within_plan"}
	failed(changed("memory_bytes", true)) == {"resources_within_plan"}
}

test_egress_outside_the_plan if failed(changed("network_access", ["inside"])) == {"network_access_allowed"}

test_iterations_outside_the_plan if {
	failed(changed("max_iterations", 0)) == {"iterations_within_plan"}
	failed(changed("max_iterations", 21)) == {"iterations_within_plan"}
}

test_replicas_outside_the_plan if failed(changed("replicas", 2)) == {"replicas_within_plan"}

# The other fields are those of other policies' checks.
test_a_missing_field_fails_a_check if {
	every field in object.keys(good.agent) - {"agent_id", "region", "compliance", "data_access_level"} {
		count(failed(without(field))) > 0
	}
}

test_nothing_passes_for_an_empty_input if count(failed({})) == count(data.sovereign.terms.checks)

test_each_failed_check_says_what_to_change if {
	doc := object.union(good, {"agent": object.union(good.agent, {
		"agent_type": "robot",
		"capabilities": ["payment"],
		"allowed_tools": ["shell"],
		"model": "other:x",
		"cpu_milli": 1,
		"network_access": ["inside"],
		"max_iterations": 99,
		"replicas": 9,
	})})
	said := data.sovereign.terms.failures with input as doc with data.catalog as catalog
	object.keys(said) == failed(doc)
	count(said) == count(data.sovereign.terms.checks) - 1
}

test_a_tenant_that_is_not_active_is_told_so if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	said := data.sovereign.terms.failures with input as doc with data.catalog as catalog
	contains(said.tenant_active, "gone")
}
