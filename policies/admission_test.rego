package sovereign.admission_test

import rego.v1

good := object.union(data.sovereign.terms_test.good, {"principal": {
	"tenant": "acme",
	"project": "default",
	"subject": "key:1",
	"scopes": ["sovereign:agents:register"],
}})

decided(doc) := decided_by(doc, data.sovereign.terms_test.catalog)

decided_by(doc, catalog) := answer if answer := data.sovereign.admission.decision with input as doc with data.catalog as catalog

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_good_request_is_allowed if {
	answer := decided(good)
	answer.allow == true
	answer.tools == ["search"]
	answer.failures == {}
	answer.obligations == []
}

test_scope_is_needed if {
	other := object.union(good, {"principal": {"scopes": ["sovereign:agents:invoke"]}})
	failed(other) == {"registration_allowed"}
	decided(other).allow == false
}

test_scopes_are_needed if {
	other := object.union(object.remove(good, ["principal"]), {"principal": {"tenant": "acme"}})
	failed(other) == {"registration_allowed"}
}

test_id_is_needed if {
	other := object.union(object.remove(good, ["agent"]), {"agent": object.remove(good.agent, ["agent_id"])})
	failed(other) == {"agent_named"}
}

test_a_refusal_grants_no_tool if {
	answer := decided(object.union(good, {"agent": object.union(good.agent, {"model": "other:x"})}))
	answer.allow == false
	answer.tools == []
	answer.failures.model_allowed
}

test_each_failed_check_says_what_to_change if {
	answer := decided(object.union(good, {
		"principal": {"scopes": []},
		"agent": object.union(good.agent, {
			"agent_type": "robot",
			"capabilities": ["payment"],
			"allowed_tools": ["shell"],
			"model": "other:x",
			"cpu_milli": 1,
			"network_access": ["inside"],
			"data_access_level": "secret",
			"compliance": ["HIPAA", "GDPR"],
			"region": "moon",
			"max_iterations": 99,
			"replicas": 9,
		}),
	}))
	every name, passed in answer.checks {
		passed == (object.get(answer.failures, name, "") == "")
	}
}

test_obligations_come_from_capabilities if {
	answer := decided(object.union(good, {"agent": object.union(good.agent, {"capabilities": ["payment"]})}))
	answer.obligations == ["human_approval"]
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false

test_every_declared_field_is_needed if {
	every field in object.keys(good.agent) {
		decided(object.union(object.remove(good, ["agent"]), {"agent": object.remove(good.agent, [field])})).allow == false
	}
}
