//! Tests of every row of the public contract and of every invalid value, with 1, 2, 3 and 8 shards.

use crate::harness::{LONG_SALE, Response, Server};

fn with_shards(mut test: impl FnMut(Server)) {
    for shards in ["1", "2", "3", "8"] {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["--shards", shards, "--items", "100", "--user-limit", "2", "--reservation-ttl", "1s"];
        test(Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat()));
    }
}

#[test]
fn an_item_is_reserved_bought_and_gone() {
    with_shards(|server| {
        let mut client = server.connect();
        let reserved = client.checkout(1, 7);
        assert_eq!((reserved.status, reserved.header("content-type")), (200, Some("text/plain")));
        assert_eq!(reserved.body.len(), 36);
        assert_eq!(client.checkout(2, 7).problem(), "item-reserved");

        let bought = client.purchase(&reserved.body);
        let receipt = bought.json();
        assert_eq!((bought.status, bought.header("content-type")), (200, Some("application/json")));
        assert_eq!((&receipt["success"], &receipt["message"]), (&true.into(), &"Purchase successful".into()));
        let image = format!("/items/7/image.svg?sale={}", receipt["sale_id"]);
        assert_eq!((&receipt["item_id"], &receipt["item_image"]), (&7.into(), &image.into()));
        assert!(receipt["sale_id"].is_u64() && receipt["item_name"].as_str().is_some_and(|name| name.ends_with(" 7")));

        assert_eq!(client.purchase(&reserved.body).problem(), "code-used");
        assert_eq!(client.checkout(2, 7).problem(), "item-sold");
        assert_eq!(client.checkout(2, 7).problem(), "item-sold", "the origin answers again, from its own memory");
    });
}

#[test]
fn json_is_given_to_who_asks_for_it() {
    with_shards(|server| {
        let mut client = server.connect();
        let by_name = client.request("POST /checkout?user_id=1&id=3");
        let by_header =
            client.try_request("POST /checkout?user_id=1&item_id=4", "Accept: application/json\r\n").unwrap();
        for (response, item) in [(by_name, 3), (by_header, 4)] {
            let json = response.json();
            assert_eq!((response.status, &json["item_id"]), (200, &item.into()));
            assert!(json["code"].as_str().is_some_and(|code| code.len() == 36) && json["sale_id"].is_u64());
            assert!(json["expires_at"].as_str().is_some_and(|time| time.ends_with('Z')));
        }
    });
}

#[test]
fn quotas_count_held_and_bought_and_come_back() {
    with_shards(|server| {
        let mut client = server.connect();
        let first = client.reserve(1, 0);
        let second = client.reserve(1, 1);
        assert_eq!(client.checkout(1, 2).problem(), "user-limit");
        assert_eq!(client.purchase(&first).status, 200);
        assert_eq!(client.checkout(1, 2).problem(), "user-limit");
        assert_eq!(client.checkout(1, 0).problem(), "item-sold", "the item takes precedence over the quota");

        let released = client.request(&format!("DELETE /checkout?code={second}"));
        assert_eq!((released.status, released.body.as_str()), (204, ""));
        assert_eq!(client.request(&format!("DELETE /checkout?code={second}")).status, 204, "a repeated release");
        assert_eq!(client.purchase(&second).problem(), "code-expired");
        assert_eq!(client.request(&format!("DELETE /checkout?code={first}")).problem(), "code-used");
        client.reserve_after_release(1, 2);
    });
}

#[test]
fn holds_run_out_and_items_come_back() {
    with_shards(|server| {
        let mut client = server.connect();
        let code = client.reserve(1, 5);
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        assert_eq!(client.purchase(&code).problem(), "code-expired");
        // On a busy machine, the next hold may also expire before it is used.
        let sold = (0..20).any(|_| {
            let next = client.checkout(2, 5);
            assert!(next.status == 200 || next.problem() == "item-reserved", "{next:?}");
            assert_eq!(
                client.purchase(&code).problem(),
                if next.status == 200 { "code-unknown" } else { "code-expired" }
            );
            next.status == 200 && client.purchase(&next.body).status == 200
        });
        assert!(sold);
    });
}

#[test]
fn the_same_key_gets_the_same_receipt() {
    with_shards(|server| {
        let mut client = server.connect();
        let code = client.reserve(1, 9);
        let mut buy = |key: &str| client.try_request(&format!("POST /purchase?code={code}"), key).unwrap();
        let first = buy("Idempotency-Key: a\r\n");
        assert_eq!(first.status, 200);
        assert_eq!(buy("Idempotency-Key: a\r\n").body, first.body);
        assert_eq!(buy("Idempotency-Key: b\r\n").problem(), "code-used");
        assert_eq!(buy("").problem(), "code-used");
    });
}

#[test]
fn the_sale_and_the_server_can_be_looked_at() {
    with_shards(|server| {
        let mut client = server.connect();
        let bought = client.reserve(1, 1);
        client.purchase(&bought);
        client.reserve(2, 2);
        let sale = client.sale();
        for (name, value) in [("items_total", 100), ("sold", 1), ("reserved", 1), ("available", 98), ("user_limit", 2)]
        {
            assert_eq!(sale[name], value, "{sale}");
        }
        assert!(sale["sale_id"].is_u64() && sale["starts_at"].as_str() < sale["ends_at"].as_str(), "{sale}");
        assert_eq!(client.request("GET /livez").status, 200);
        assert_eq!(client.request("GET /readyz").status, 200);
        let health = client.request("GET /health").json();
        assert_eq!((&health["ready"], &health["sale"]["sold"]), (&true.into(), &1.into()), "{health}");
    });
}

#[test]
fn bad_values_are_refused_by_name() {
    with_shards(|server| {
        let mut client = server.connect();
        // `tests/hostile` covers every invalid spelling of a number.
        for value in ["", "x"] {
            assert_invalid(client.request(&format!("POST /checkout?user_id={value}&item_id=1")), "user_id");
            assert_invalid(client.request(&format!("POST /checkout?user_id=1&item_id={value}")), "item_id");
            assert_invalid(client.request(&format!("POST /checkout?user_id=1&id={value}")), "item_id");
        }
        for query in ["", "item_id=1", "user_id=1&user_id=2&item_id=1"] {
            assert_invalid(client.request(&format!("POST /checkout?{query}")), "user_id");
        }
        for query in ["user_id=1&item_id=1&item_id=2", "user_id=1&item_id=100", "user_id=1&item_id=4294967295"] {
            assert_invalid(client.request(&format!("POST /checkout?{query}")), "item_id");
        }
        let good = client.reserve(1, 1);
        let bad_codes = [
            String::new(),
            "x".into(),
            format!("%7B{good}%7D"),
            format!("{{{good}}}"),
            good.replace('-', ""),
            format!("{good}&code={good}"),
            good[1..].to_owned(),
        ];
        for code in bad_codes {
            assert_invalid(client.request(&format!("POST /purchase?code={code}")), "code");
            assert_invalid(client.request(&format!("DELETE /checkout?code={code}")), "code");
        }
        for key in ["Idempotency-Key:\r\n", "Idempotency-Key: a\r\nIdempotency-Key: a\r\n"] {
            let bought = client.try_request(&format!("POST /purchase?code={good}"), key).unwrap();
            assert_invalid(bought, "Idempotency-Key");
        }
        for unknown in ["00000000-0000-0000-0000-000000000000", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"] {
            assert_eq!(client.purchase(unknown).problem(), "code-unknown");
            assert_eq!(client.request(&format!("DELETE /checkout?code={unknown}")).problem(), "code-unknown");
        }
        let forged = format!("{}{}", &good[..35], if good.ends_with('0') { '1' } else { '0' });
        assert_eq!(client.purchase(&forged).problem(), "code-unknown");
        assert_eq!(client.purchase(&good).status, 200, "invalid requests do not change the hold");
    });
}

/// RFC 9562 §4 allows upper case, and RFC 3986 §2.4 percent encoding of any character of a name or a value.
#[test]
fn other_spellings_of_good_values_are_accepted() {
    with_shards(|server| {
        let mut client = server.connect();
        let reserved = client.request("POST /checkout?%75ser_id=%37&item%5Fid=1%32");
        assert_eq!(reserved.status, 200, "{reserved:?}");
        let spelled = reserved.body.to_uppercase().replace('-', "%2D");
        let bought = client.request(&format!("POST /purchase?%63ode={spelled}"));
        assert_eq!((bought.status, &bought.json()["item_id"]), (200, &12.into()), "{bought:?}");
        let code = client.reserve(7, 13);
        assert_eq!(client.request(&format!("DELETE /checkout?code={}", code.to_uppercase())).status, 204);
    });
}

#[test]
fn a_body_in_place_of_the_query_is_explained() {
    with_shards(|server| {
        let mut client = server.connect();
        for (path, body, name) in [
            ("/checkout", "user_id=1&item_id=2", "user_id"),
            ("/checkout", r#"{"user_id":1,"item_id":2}"#, "user_id"),
            ("/purchase", "code=00000000-0000-0000-0000-000000000000", "code"),
        ] {
            let length = body.len();
            client
                .send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
                .unwrap();
            let refused = client.read().unwrap();
            assert_invalid(refused.clone(), name);
            let detail = refused.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("in the query string") && detail.contains("a body is not read"), "{detail}");
        }
    });
}

#[test]
fn json_is_not_sent_to_a_client_that_excludes_it() {
    with_shards(|server| {
        let mut client = server.connect();
        let cases = [
            ("application/json", true),
            ("text/plain, Application/JSON; q=0.5", true),
            ("application/json;q=0", false),
            ("application/json; q=0.000, text/plain", false),
            ("application/json;charset=utf-8;q=0.001", true),
            ("application/jsonx", false),
            ("text/plain;x=application/json", false),
        ];
        for (item, (accept, is_json)) in (20..).zip(cases) {
            let line = format!("POST /checkout?user_id={item}&item_id={item}");
            let reserved = client.try_request(&line, &format!("Accept: {accept}\r\n")).unwrap();
            assert_eq!((reserved.status, reserved.body.starts_with('{')), (200, is_json), "{accept}");
        }
    });
}

/// Each malformed request has a detail that names the reason.
#[test]
fn malformed_requests_name_the_reason() {
    with_shards(|server| {
        for (request, reason) in [
            ("GET /sale HTTP/1.1\nHost: x\n\n", "CR LF"),
            ("GET  /sale HTTP/1.1\r\nHost: x\r\n\r\n", "request line"),
            ("GET /sale HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n", "header field"),
            ("GET /sale#x HTTP/1.1\r\nHost: x\r\n\r\n", "target"),
            ("GET /sale HTTP/1.1\r\n\r\n", "Host"),
            ("GET /sale HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", "Host"),
            ("GET /sale HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", "Content-Length"),
            (
                "GET /sale HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "Transfer-Encoding",
            ),
            ("GET /sale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "chunked body"),
        ] {
            let mut client = server.connect();
            client.send(request.as_bytes()).unwrap();
            let refused = client.read().unwrap();
            assert_eq!(refused.problem(), "malformed-request", "{request}");
            assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains(reason)), "{refused:?}");
        }
    });
}

#[test]
fn options_names_the_methods_of_a_path() {
    with_shards(|server| {
        let mut client = server.connect();
        for (target, allow) in [
            ("/checkout", "POST, DELETE"),
            ("/purchase", "POST"),
            ("/sale", "GET, HEAD"),
            ("/items", "GET, HEAD"),
            ("/items/7/image.svg", "GET, HEAD"),
            ("/events", "GET, HEAD"),
            ("*", "GET, HEAD, POST, DELETE"),
        ] {
            let answer = client.request(&format!("OPTIONS {target}"));
            assert_eq!((answer.status, answer.header("allow")), (204, Some(allow)), "{target}");
            assert_eq!(answer.header("access-control-allow-origin"), None, "without --cors-origin");
        }
        assert_eq!(client.request("OPTIONS /nowhere").status, 404);
    });
}

fn assert_invalid(response: Response, parameter: &str) {
    assert_eq!((response.status, response.problem().as_str()), (400, "invalid-parameter"), "{response:?}");
    assert!(response.json()["detail"].as_str().is_some_and(|detail| detail.contains(parameter)), "{response:?}");
}

#[test]
fn wrong_methods_and_paths_are_told_apart() {
    with_shards(|server| {
        let mut client = server.connect();
        for (line, status, allow) in [
            ("GET /checkout", 405, Some("POST, DELETE")),
            ("GET /purchase", 405, Some("POST")),
            ("DELETE /sale", 405, Some("GET, HEAD")),
            ("PATCH /livez", 405, Some("GET, HEAD")),
            ("POST /", 405, Some("GET, HEAD")),
            ("GET /nothing", 404, None),
            ("POST /checkout/1", 404, None),
        ] {
            let response = client.request(line);
            assert_eq!((response.status, response.header("allow")), (status, allow), "{line}");
        }
        client.send(b"HEAD /sale HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let head = client.read_head().unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
        assert_eq!(head.header("content-length"), None, "the body is not rendered for HEAD");
        assert_eq!(client.request("GET /livez").status, 200, "the connection stays open");
    });
}

#[test]
fn http_is_spoken_as_clients_expect() {
    with_shards(|server| {
        // Pipelined requests are answered in order, both those that an owner decides and those answered at once.
        let mut client = server.connect();
        let lines = [
            "POST /checkout?user_id=1&item_id=20",
            "GET /nothing",
            "POST /checkout?user_id=2&item_id=20",
            "GET /livez",
        ];
        let all: String = lines.iter().map(|line| format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
        client.send(all.as_bytes()).unwrap();
        let statuses: Vec<u16> = lines.iter().map(|_| client.read().unwrap().status).collect();
        assert_eq!(statuses, [200, 404, 409, 200]);

        // A body is read and discarded, whatever its framing. The server requests it if the client sends `Expect`.
        let checkout = "POST /checkout?user_id=3&item_id=";
        client.send(format!("{checkout}21 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe").as_bytes()).unwrap();
        client.send(b"llo").unwrap();
        assert_eq!(client.read().unwrap().status, 200);
        let chunked =
            format!("{checkout}22 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
        client.send(chunked.as_bytes()).unwrap();
        assert_eq!(client.read().unwrap().status, 200);
        let expects = "POST /purchase?code=x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        client.send(expects.as_bytes()).unwrap();
        assert_eq!(client.read().unwrap().status, 100);
        client.send(b"!").unwrap();
        assert_eq!(client.read().unwrap().status, 400);

        // The server closes the connection when the client asks for it, by the rules of the client's HTTP version.
        client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(client.read().unwrap().header("connection"), Some("close"));
        assert!(client.is_closed());
        let mut old = server.connect();
        old.send(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!(old.read().unwrap().header("connection"), Some("keep-alive"));
        old.send(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(old.read().unwrap().status, 200);
        assert!(old.is_closed());

        // A client that has closed its sending side still receives every response.
        let mut half = server.connect();
        half.send(format!("{checkout}23 HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .unwrap();
        half.finish();
        assert_eq!([half.read().unwrap().status, half.read().unwrap().status], [409, 200]);
        assert!(half.is_closed());
    });
}

#[test]
fn a_request_id_is_given_back_with_its_own_answer() {
    with_shards(|server| {
        let mut client = server.connect();
        let mut ask = |line: &str, id: &str| client.try_request(line, &format!("X-Request-Id: {id}\r\n")).unwrap();
        let code = ask("POST /checkout?user_id=1&item_id=7", "granted-1").body;
        for (line, status) in [
            ("POST /checkout?user_id=1&item_id=8", 200),
            ("POST /checkout?user_id=1&item_id=9", 409),
            ("POST /checkout?item_id=1", 400),
            (&format!("POST /purchase?code={code}"), 200),
            (&format!("DELETE /checkout?code={code}"), 409),
            ("GET /sale", 200),
            ("GET /nothing", 404),
        ] {
            let answer = ask(line, "id~1");
            assert_eq!((answer.status, answer.header("x-request-id")), (status, Some("id~1")), "{line}");
        }
        assert_eq!(ask("GET /sale", "not one").header("x-request-id"), None);
        // Each pipelined response has the id of its own request, also if it waits for the flush of the log. The
        // response to a request without an id has none.
        let lines: Vec<_> =
            (20..40).map(|item| format!("POST /checkout?user_id={item}&item_id={item} HTTP/1.1")).collect();
        for (number, line) in lines.iter().enumerate() {
            let id = if number % 2 == 0 { format!("X-Request-Id: {number}\r\n") } else { String::new() };
            client.send(format!("{line}\r\nHost: shop\r\n{id}\r\n").as_bytes()).unwrap();
        }
        for number in 0..lines.len() {
            let answer = client.read().unwrap();
            let id = (number % 2 == 0).then(|| number.to_string());
            assert_eq!((answer.status, answer.header("x-request-id")), (200, id.as_deref()));
        }
        client.send(b"GET /sale HTTP/1.1\r\nHost: shop\r\nX-Request-Id: last\r\n\r\nnot http at all\r\n\r\n").unwrap();
        assert_eq!(client.read().unwrap().header("x-request-id"), Some("last"));
        let malformed = client.read().unwrap();
        assert_eq!((malformed.status, malformed.header("x-request-id")), (400, None));
    });
}

#[test]
fn every_answer_has_a_date_and_every_503_says_when_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1", "--max-connections", "2"]].concat());
    assert!(server.connect().request("GET /livez").header("date").is_some_and(|date| date.ends_with("GMT")));
    let clients = server.occupy(2);
    let mut third = server.connect();
    let refusal = third.read().unwrap();
    assert_eq!((refusal.problem().as_str(), refusal.asks_to_retry()), ("too-many-connections", true));
    assert!(third.is_closed());
    drop(clients);
    let served = (0..200).find(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        server.connect().try_request("GET /livez", "").is_ok_and(|response| response.status == 200)
    });
    assert!(served.is_some(), "no client is accepted after others have disconnected");
}
