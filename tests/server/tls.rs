//! Encryption of the connection to Postgres: whatever the spelling, the connection is as strong as the setting says, or
//! the setting is refused and no connection is made.

use crate::cluster::{Cluster, Options, PASSWORD};
use crate::harness::{LONG_SALE, Server, run_to_end};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A cluster with TLS, and the files of its clients.
struct Scene {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Scene {
    /// Starts a cluster with a certificate for `localhost`, which takes clients as `tcp` says.
    fn new(tcp: &str) -> Scene {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let [authority, stranger] = [params.clone(), params]
            .map(|params| CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap());
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".into()]).unwrap().signed_by(&key, &authority).unwrap();
        let options = Options {
            tcp,
            certificate: Some((certificate.pem(), key.serialize_pem())),
            client_authority: Some(authority.pem()),
            ..Options::default()
        };
        let scene = Scene { cluster: Cluster::start_with(&options), dir: tempfile::tempdir().unwrap() };
        let client_key = KeyPair::generate().unwrap();
        let mut client = CertificateParams::new(Vec::new()).unwrap();
        client.distinguished_name.push(DnType::CommonName, "stampede");
        let client = client.signed_by(&client_key, &authority).unwrap();
        for (name, text) in [
            ("good", authority.pem()),
            ("bad", stranger.pem()),
            ("empty", String::new()),
            ("client.crt", client.pem()),
            ("client.key", client_key.serialize_pem()),
        ] {
            std::fs::write(scene.file(name), text).unwrap();
            std::fs::set_permissions(scene.file(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a server. `PORT`, `SECRET` and `DIR` in the URL stand for those of the scene.
    fn start(&self, url: &str) -> Server {
        let data = self.dir.path().join("data");
        start(&data, &self.fill_in(url, self.cluster.port))
    }

    fn fill_in(&self, url: &str, port: u16) -> String {
        let dir = self.dir.path().display().to_string();
        url.replace("PORT", &port.to_string()).replace("SECRET", PASSWORD).replace("DIR", &dir)
    }
}

fn start(data: &Path, url: &str) -> Server {
    let _ = std::fs::create_dir(data);
    Server::start(data, &[&LONG_SALE[..], &["--database-url", url, "--recover-from", "log"]].concat())
}

/// Returns whether the connections of the server are encrypted, as Postgres sees it. The maintenance of the partitions has
/// one of its own for a moment.
fn is_encrypted(cluster: &Cluster) -> bool {
    let ssl =
        "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'stampede'";
    cluster.ask(ssl) == "t"
}

#[test]
fn encryption_is_as_libpq_has_it() {
    let scene = Scene::new("host all all all scram-sha-256");
    for (url, expected) in [
        ("postgres://stampede:SECRET@localhost:PORT/postgres", Ok(true)),
        ("postgres://stampede:SECRET@127.0.0.1:PORT/postgres?sslmode=require", Ok(true)),
        ("postgres://stampede:SECRET@localhost:PORT/postgres?sslmode=disable", Ok(false)),
        ("postgres://stampede:SECRET@localhost:PORT/postgres?sslmode=verify-full&sslrootcert=DIR/good", Ok(true)),
        ("postgres://stampede:SECRET@localhost:PORT/postgres?%73slmode=verify-%66ull&sslrootcert=DIR%2Fgood", Ok(true)),
        ("postgres://127.0.0.1:PORT/postgres?user=stampede&password=SECRET&ssl=true", Ok(true)),
        ("host=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode = require", Ok(true)),
        ("host = 'localhost' port=PORT user=stampede dbname=postgres password='SECRET'sslmode='require'", Ok(true)),
        ("hostaddr=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode=require", Ok(true)),
        (
            "host=localhost hostaddr=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode=verify-full sslrootcert=DIR/good",
            Ok(true),
        ),
        (
            "host=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode=verify-ca sslrootcert=DIR/good",
            Ok(true),
        ),
        // As in libpq, a root certificate turns `require` into `verify-ca`.
        (
            "host=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode=require sslrootcert=DIR/good",
            Ok(true),
        ),
        (
            "host=localhost port=PORT user=stampede dbname=postgres password=SECRET sslmode=require sslrootcert=DIR/bad",
            Err("invalid peer certificate"),
        ),
        (
            "host=localhost port=PORT user=stampede dbname=postgres password=SECRET sslmode=verify-ca sslrootcert=DIR/bad",
            Err("invalid peer certificate"),
        ),
        (
            "host=localhost port=PORT user=stampede dbname=postgres password=SECRET sslmode=verify-full sslrootcert=DIR/bad",
            Err("invalid peer certificate"),
        ),
        (
            "host=127.0.0.1 port=PORT user=stampede dbname=postgres password=SECRET sslmode=verify-full sslrootcert=DIR/good",
            Err("not valid for name"),
        ),
        // The certificates of the system do not include the authority of this test.
        ("host=localhost port=PORT user=stampede dbname=postgres password=SECRET sslrootcert=system", Err("cert")),
        (
            "postgres://stampede:SECRET@localhost:PORT/postgres?sslmode=verify-full&sslrootcert=DIR/empty",
            Err("the file has no certificate"),
        ),
        (
            "postgres://stampede:SECRET@localhost:PORT/postgres?sslmode=verify-full&sslrootcert=/no/such/file",
            Err("No such file"),
        ),
    ] {
        let server = scene.start(url);
        match expected {
            Ok(encrypted) => {
                server.wait_for_line("the database is connected");
                assert_eq!(is_encrypted(&scene.cluster), encrypted, "{url}");
            }
            Err(reason) => {
                let line = server.wait_for_line("the database is unavailable");
                assert!(line["why"].as_str().is_some_and(|why| why.contains(reason)), "{url}: {line}");
            }
        }
        server.kill();
    }
    // A password with a question mark does not end the address.
    scene.cluster.ask("alter role stampede password 'a?b&sslmode=disable'");
    let server = scene.start("postgres://stampede:a?b&sslmode=disable@localhost:PORT/postgres?sslmode=require");
    server.wait_for_line("the database is connected");
    assert!(is_encrypted(&scene.cluster));
}

#[test]
fn a_spelling_that_is_not_understood_is_refused_without_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for url in [
        "hostaddr=127.0.0.1 port=PORT user=u sslmode=verify-full",
        "host=127.0.0.1 port=PORT user=u sslmode=Require",
        "host=127.0.0.1 port=PORT user=u sslmode=require prefer",
        "host=127.0.0.1 port=PORT user=u sslmode=allow",
        "host=127.0.0.1 port=PORT user=u sslmode=''",
        "host=127.0.0.1 port=PORT user=u ssl_mode=require",
        "host=127.0.0.1 port=PORT user=u sslrootcert=/x",
        "host=127.0.0.1 port=PORT user=u sslmode=require sslrootcert=system",
        "host=127.0.0.1 port=PORT user=u sslcert=/x",
        "host=127.0.0.1 port=PORT user=u ssl_min_protocol_version=TLSv1.3",
        "host=127.0.0.1 port=PORT user=u sslcrl=/x",
        "postgres://u@127.0.0.1:PORT/n?sslmode=require=x",
        "postgres://u@127.0.0.1:PORT/n?sslmode",
        "postgres://u@127.0.0.1:PORT/n?sslmode=require&",
        "postgres://u@127.0.0.1:PORT/n?sslmode=verify_full",
        "postgres:///n?port=PORT&sslmode=require",
        "POSTGRES://u@127.0.0.1:PORT/n?sslmode=require",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let url = url.replace("PORT", &port.to_string());
        let (code, text) = run_to_end(dir.path(), &["--database-url", &url]);
        assert_eq!(code, 2, "{url}: {text}");
        assert!(listener.accept().is_err(), "{url}: a connection was made");
    }
}

#[test]
fn a_client_certificate_is_sent_and_its_key_is_kept_secret() {
    let scene = Scene::new("hostssl all all all cert");
    let url = "host=localhost port=PORT user=stampede dbname=postgres sslmode=verify-full sslrootcert=DIR/good";
    let server = scene.start(url);
    let line = server.wait_for_line("the database is unavailable");
    assert!(line["why"].as_str().is_some_and(|why| why.contains("certificate")), "{line}");
    server.kill();
    let url = format!("{url} sslcert=DIR/client.crt sslkey=DIR/client.key");
    let key = scene.file("client.key");
    for mode in [0o644, 0o604] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let server = scene.start(&url);
        let line = server.wait_for_line("the database is unavailable");
        assert!(line["why"].as_str().is_some_and(|why| why.contains("other users can read the private key")), "{line}");
        server.kill();
    }
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let server = scene.start(&url);
    server.wait_for_line("the database is connected");
    let name = "select distinct client_dn from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'stampede'";
    assert!(scene.cluster.ask(name).contains("CN=stampede"));
}

#[test]
fn a_server_without_tls_is_refused_if_tls_is_required() {
    let plain = Cluster::start_with(&Options::OPEN);
    for (mode, refusal) in [("prefer", None), ("require", Some("does not support TLS")), ("verify-ca", Some("TLS"))] {
        let dir = tempfile::tempdir().unwrap();
        let server =
            start(dir.path(), &format!("postgres://stampede@127.0.0.1:{}/postgres?sslmode={mode}", plain.port));
        match refusal {
            None => _ = server.wait_for_line("the database is connected"),
            Some(refusal) => {
                let line = server.wait_for_line("the database is unavailable");
                assert!(line["why"].as_str().is_some_and(|why| why.contains(refusal)), "{mode}: {line}");
            }
        }
    }
}
