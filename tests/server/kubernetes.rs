//! Tests of `tuning/kubernetes` that need no cluster: its schemas, and the real server in what a pod of it is given.

use crate::harness::{Client, LONG_SALE, Server, in_repository, repository_text, skipped, stampede};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

const FILE: &str = "tuning/kubernetes/stampede.yaml";

/// Versions of Kubernetes with a schema that the file is validated against: the oldest with `ReadWriteOncePod` as a
/// stable feature, and a newer one.
const VERSIONS: [&str; 2] = ["1.29.0", "1.33.0"];

/// Validates the file with `kubernetes-validate`, a package of PyPI with the schemas of each version.
#[test]
fn the_objects_are_valid() {
    let text = repository_text(FILE);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stampede.yaml");
    let is_valid = |text: &str, version: &str| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new("kubernetes-validate");
        command.args(["--strict", "--kubernetes-version", version]).arg(&file);
        command.output().ok().map(|output| (output.status.success(), format!("{output:?}")))
    };
    for version in VERSIONS {
        let Some((is_valid, said)) = is_valid(&text, version) else {
            return skipped("Kubernetes's files", "no kubernetes-validate");
        };
        assert!(is_valid, "{said}");
        assert_eq!(said.matches("passed for resource").count(), text.matches("\nkind: ").count(), "{said}");
    }
    // The validation finds each of these errors.
    for (right, wrong) in [
        ("replicas: 1", "replicas: one"),
        ("readOnlyRootFilesystem", "readOnlyRootFileSystem"),
        ("serviceName: stampede-admin", "service: stampede-admin"),
        ("failureThreshold: 60", "failureTreshold: 60"),
    ] {
        assert!(text.contains(right), "{right}");
        let (is_valid, said) = is_valid(&text.replace(right, wrong), VERSIONS[0]).unwrap();
        assert!(!is_valid, "{wrong}: {said}");
    }
}

/// Validates a `ServiceMonitor` from standard input with `@kubernetes-models/prometheus-operator`, a package of npm with the
/// schemas of the Prometheus Operator.
const VALIDATE_MONITOR: &str = r#"
import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
new ServiceMonitor(parse(readFileSync(0, "utf8"))).validate();
"#;

#[test]
fn the_monitor_is_valid() {
    // Beside the profiles in the target directory.
    let tools = Path::new(env!("CARGO_BIN_EXE_stampede")).ancestors().nth(2).unwrap().join("prometheus-operator");
    if !tools.join("node_modules").exists() {
        return skipped("the monitor for Kubernetes", "no @kubernetes-models/prometheus-operator");
    }
    let text = repository_text("tuning/kubernetes/servicemonitor.yaml");
    let validate = |text: &str| {
        let mut node = Command::new("node");
        node.args(["--input-type=module", "--eval", VALIDATE_MONITOR]).current_dir(&tools);
        let mut node = node.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        node.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = node.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_valid, said) = validate(&text);
    assert!(is_valid, "{said}");
    for (right, wrong) in [("interval: 15s", "interval: 15 s"), ("endpoints:", "ports:"), ("path: /metrics", "path: 1")]
    {
        assert!(text.contains(right), "{right}");
        let (is_valid, said) = validate(&text.replace(right, wrong));
        assert!(!is_valid && said.contains("ValidationError"), "{wrong}: {said}");
    }
}

/// Returns the values of all lines with this key.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.trim().strip_prefix(key)?.strip_prefix(": ");
    text.lines().filter_map(value).map(|value| value.trim_matches('"')).collect()
}

/// Returns the environment that the file gives to the container, without what comes from secrets.
fn environment(text: &str) -> Vec<(&str, &str)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let value = pair[1].strip_prefix("value: ")?;
        Some((pair[0].strip_prefix("- name: ")?, value.trim_matches('"')))
    });
    pairs.collect()
}

#[test]
fn the_objects_agree_with_the_image_and_with_each_other() {
    let (text, image) = (repository_text(FILE), repository_text("Dockerfile"));
    assert_eq!(values(&text, "runAsUser"), ["10001"]);
    assert!(image.contains("\nUSER 10001\n") && image.contains("\nVOLUME /var/lib/stampede\n"), "{image}");
    assert!(text.contains("mountPath: /var/lib/stampede }"), "the volume of the image");
    assert!(text.contains(&format!("image: stampede:{}\n", env!("CARGO_PKG_VERSION"))), "the version of this server");
    let environment = environment(&text);
    let value = |name: &str| environment.iter().find(|(other, _)| *other == name).map(|(_, value)| *value).unwrap();
    assert!(value("DATA_DIR").starts_with("/var/lib/stampede/"), "a directory in the volume");
    for (listen, port) in [("LISTEN", "http"), ("ADMIN_LISTEN", "admin")] {
        let (_, number) = value(listen).split_once(':').unwrap();
        assert!(text.contains(&format!("{{ name: {port}, containerPort: {number} }}")), "{listen}");
    }
    assert!(text.contains(&format!("limits: {{ cpu: \"{}\"", value("SHARDS"))), "one CPU for each shard");
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u32>().unwrap();
    let grace = seconds(values(&text, "terminationGracePeriodSeconds")[0]);
    assert!(seconds(value("DRAIN_DELAY")) + seconds(value("DRAIN_TIMEOUT")) < grace);
    // The monitor selects the service of the admin port.
    let monitor = repository_text("tuning/kubernetes/servicemonitor.yaml");
    let labels = "{ app.kubernetes.io/name: stampede, app.kubernetes.io/component: admin }";
    assert_eq!(values(&monitor, "matchLabels"), [labels]);
    assert!(
        text.contains(&format!("name: stampede-admin\n  labels: {labels}"))
            && text.contains("{ name: admin, port: 8081")
    );
}

/// The server as a pod runs it: the settings of the file, user 10001 without capabilities, a root file system that
/// cannot be written, the seccomp profile, and a volume that belongs to root and to the group of the pod.
#[test]
fn a_server_sells_in_what_the_pod_is_given() {
    let has_seccomp = Command::new("/usr/bin/python3").args(["-c", "import seccomp"]).status();
    if !rustix::process::getuid().is_root() || !has_seccomp.is_ok_and(|status| status.success()) {
        return skipped("a pod", "it needs root and python3-seccomp");
    }
    let text = repository_text(FILE);
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let volume = dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(0), Some(10001)).unwrap();
    fs::set_permissions(&volume, Permissions::from_mode(0o2775)).unwrap();
    // The user of the pod can execute and read these.
    let binary = dir.path().join("stampede");
    for (from, to) in [
        (env!("CARGO_BIN_EXE_stampede").into(), binary.clone()),
        (in_repository("tuning/seccomp.json"), dir.path().join("seccomp.json")),
        (in_repository("tests/server/under_seccomp.py"), dir.path().join("under_seccomp.py")),
    ] {
        fs::copy::<std::path::PathBuf, _>(from, &to).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o755)).unwrap();
    }
    let data = volume.join("data");
    let start = || {
        let server = stampede(&data, &LONG_SALE);
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c"]);
        command.arg(
            "set -e; cd \"$0\"; mount --bind volume volume; mount -o remount,bind,ro /; ! touch is-writable 2>/dev/null
             exec setpriv --reuid 10001 --regid 10001 --groups 10001 --bounding-set=-all --inh-caps=-all --no-new-privs \
               /usr/bin/python3 under_seccomp.py seccomp.json \"$PWD/stampede\" \"$@\"",
        );
        command.arg(dir.path()).args(server.get_args()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // The arguments have other ports and another directory.
        command.envs(environment(&text)).stdin(Stdio::null());
        let server = Server::run(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        server.wait_for_line("serving");
        server
    };
    let server = start();
    let mut client = Client::connect(server.address).unwrap();
    for probe in ["/livez", "/readyz"] {
        assert!(text.contains(&format!("httpGet: {{ path: {probe}, port: http }}")));
        assert_eq!(client.request(&format!("GET {probe}")).status, 200, "{probe}");
    }
    assert_eq!(Client::connect(server.admin).unwrap().request("GET /metrics").status, 200);
    let code = client.reserve(1, 7);
    assert_eq!(client.purchase(&code).status, 200);
    let of = fs::metadata(&data).unwrap();
    assert_eq!((of.uid(), of.mode() & 0o777), (10001, 0o700), "the directory is the server's alone");
    drop((client, server));
    // Killed. The next pod has the volume again.
    let server = start();
    assert_eq!(Client::connect(server.address).unwrap().sale()["sold"], 1);
}
