//! The names under which the admin port answers: IP addresses, `localhost`, and the names of `--admin-host`.
//!
//! A web page of another site can make a browser connect to the admin port: the owner of a name lets it point to the
//! address of this port after the page has been loaded (DNS rebinding). The browser then takes the answers for those of
//! the page's own site, and lets the page read them. But it sends the page's name in `Host`.

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const REFUSAL: &str =
    "This port answers only to IP addresses, to localhost, and to the names of --admin-host (ADMIN_HOST).\n";

/// The names under which the admin port answers, in addition to IP addresses.
pub struct HostNames(Vec<String>);

impl HostNames {
    /// Creates the set of `localhost` and `names`.
    pub fn new(names: &[String]) -> HostNames {
        HostNames(names.iter().cloned().chain(["localhost".to_owned()]).collect())
    }

    /// Passes `request` on if its client has used one of the names, and otherwise answers 421. A client that sends no
    /// `Host` is no browser.
    pub async fn check(State(names): State<Arc<HostNames>>, request: Request, next: Next) -> Response {
        let in_target = request.uri().authority().map(Authority::as_str);
        let given = request.headers().get_all(HOST).iter().map(HeaderValue::to_str);
        let are_known = given.chain(in_target.map(Ok)).all(|host| host.is_ok_and(|host| names.has(host)));
        if are_known { next.run(request).await } else { (StatusCode::MISDIRECTED_REQUEST, REFUSAL).into_response() }
    }

    /// Returns whether `host`, with or without a port, is an IP address or one of the names.
    fn has(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host();
        let is_address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(name) => name.parse::<Ipv6Addr>().is_ok(),
            None => name.parse::<Ipv4Addr>().is_ok(),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        !host.contains('@') && (is_address || self.0.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_accepted_and_no_others() {
        let names = HostNames::new(&["shop-1.internal".into()]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8081",
            "10.0.0.7:80",
            "[::1]",
            "[::1]:8081",
            "[2001:db8::7]:1",
            "localhost",
            "localhost:8081",
            "LocalHost.:8081",
            "shop-1.internal",
            "SHOP-1.internal:8081",
        ] {
            assert!(names.has(host), "{host}");
        }
        for host in [
            "",
            ":8081",
            "evil.example",
            "evil.example:8081",
            "localhost.evil.example",
            "shop-1.internal.evil.example",
            "xshop-1.internal",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "::1",
            "[evil.example]",
            "2130706433",
            "127.1",
            "localhost..",
            "localhost, evil.example",
            "localhost evil.example",
        ] {
            assert!(!names.has(host), "{host}");
        }
    }
}
