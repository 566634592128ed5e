package sovereign.invocation_test

import rego.v1

good := {
	"principal": {"tenant": "acme", "scopes": ["sovereign:agents:invoke", "sovereign:usage:read"]},
	"action": "invoke",
	"tenant": "acme",
}

decided(doc) := answer if answer := data.sovereign.invocation.decision with input as doc with data.catalog as data.sovereign.terms_test.catalog

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

test_scope_allows_its_action if {
	decided(good).allow == true
	decided(object.union(good, {"action": "usage"})).allow == true
}

test_scope_allows_no_other_action if {
	every action in ["register", "read", "list", "remove"] {
		failed(object.union(good, {"action": action})) == {"scope_held"}
	}
}

test_unknown_action if failed(object.union(good, {"action": "own"})) == {"action_known", "scope_held"}

test_other_tenant if failed(object.union(good, {"tenant": "globex"})) == {"same_tenant"}

test_no_tenant_is_no_match if {
	nobody := {"principal": {"scopes": good.principal.scopes}, "action": "invoke"}
	failed(nobody) == {"same_tenant", "tenant_active"}
}

test_suspended_tenant if {
	gone := object.union(good, {"principal": {"tenant": "gone"}, "tenant": "gone"})
	failed(gone) == {"tenant_active"}
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
