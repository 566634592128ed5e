package sovereign.egress_test

import rego.v1

good := {
	"principal": {"tenant": "acme"},
	"agent": {"network_access": ["outside"]},
	"destination": {"scheme": "https", "host": "api.example.org", "port": 443},
}

to(fields) := object.union(good, {"destination": object.union(good.destination, fields)})

decided(doc) := decided_by(doc, data.sovereign.terms_test.catalog)

decided_by(doc, catalog) := answer if answer := data.sovereign.egress.decision with input as doc with data.catalog as catalog

failed(doc) := {name | some name, passed in decided(doc).checks; passed != true}

granted(doc, catalog) := answer if answer := data.sovereign.egress.grant with input as doc with data.catalog as catalog

test_a_host_of_a_declared_place if {
	decided(good).allow == true
	decided(to({"host": "example.com", "scheme": "http", "port": 80})).allow == true
}

test_a_host_that_only_looks_alike if {
	every host in ["example.org", "evilexample.org", "example.org.evil", ".example.org", "EXAMPLE.COM", ""] {
		failed(to({"host": host})) == {"destination_declared", "destination_allowed"}
	}
	contains(decided(to({"host": "evilexample.org"})).failures.destination_declared, "evilexample.org")
}

test_a_declared_place_that_the_plan_lost if {
	doc := object.union(good, {
		"agent": {"network_access": ["inside"]},
		"destination": {"scheme": "https", "host": "intranet.example.net", "port": 443},
	})
	failed(doc) == {"destination_allowed"}
	contains(decided(doc).failures.destination_allowed, "intranet.example.net")
}

test_other_schemes_and_ports if {
	failed(to({"scheme": "ftp"})) == {"scheme_allowed", "port_allowed"}
	contains(decided(to({"scheme": "ftp"})).failures.scheme_allowed, "ftp")
	failed(to({"port": 8443})) == {"port_allowed"}
	failed(to({"port": "443"})) == {"port_allowed"}
	contains(decided(to({"port": 8443})).failures.port_allowed, "8443")
}

test_no_host_is_no_match if {
	failed(object.remove(good, ["destination"])) == {
		"scheme_allowed",
		"port_allowed",
		"destination_declared",
		"destination_allowed",
	}
}

test_a_grant_is_what_the_plan_still_has if {
	granted(good, data.sovereign.terms_test.catalog) == {"hosts": ["*.example.org", "example.com"]}
	granted(object.union(good, {"agent": {"network_access": ["inside"]}}), data.sovereign.terms_test.catalog) == {"hosts": []}
	granted(object.union(good, {"principal": {"tenant": "gone"}}), data.sovereign.terms_test.catalog) == {"hosts": []}
	granted({}, data.sovereign.terms_test.catalog) == {"hosts": []}
}

test_suspended_tenant if {
	doc := object.union(good, {"principal": {"tenant": "gone"}})
	failed(doc) == {"tenant_active", "destination_allowed"}
	decided(doc).failures.tenant_active
}

test_nothing_is_allowed_for_an_empty_input if decided({}).allow == false
