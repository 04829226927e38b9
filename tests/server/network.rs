//! A network link whose cable can be pulled: a network namespace that is connected by a pair of virtual interfaces.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A namespace and the link to it. Both are removed when dropped.
pub struct Link {
    /// Name of the namespace. Programs in it listen on `address`.
    pub namespace: String,
    /// Address at the far end of the link, in the namespace.
    pub address: String,
    interface: String,
}

/// Links of this test process.
static LINKS: AtomicU32 = AtomicU32::new(0);

/// Runs `ip` with these arguments. Returns what it complains about.
fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {complaint}")) }
}

impl Link {
    /// Creates a namespace and a link to it.
    ///
    /// # Errors
    /// The reason, if this machine permits no namespaces.
    pub fn make() -> Result<Link, String> {
        // Of 198.18.0.0/15, which is for tests of networks, a block of four addresses that no other test process has.
        let number = std::process::id() % 8192 * 4 + LINKS.fetch_add(1, Ordering::SeqCst) % 4;
        let block = |last: u32| format!("198.18.{}.{}", number / 64 % 256, number % 64 * 4 + last);
        let (namespace, interface) = (format!("stampede-{number}"), format!("st{number}"));
        let (near, far) = (block(1), block(2));
        ip(&format!("netns add {namespace}"))?;
        // From here on, the link is removed if a step fails.
        let link = Link { namespace: namespace.clone(), address: far.clone(), interface: interface.clone() };
        ip(&format!("link add {interface} type veth peer name inside netns {namespace}"))?;
        ip(&format!("addr add {near}/30 dev {interface}"))?;
        ip(&format!("link set {interface} up"))?;
        ip(&format!("-n {namespace} addr add {far}/30 dev inside"))?;
        ip(&format!("-n {namespace} link set inside up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        Ok(link)
    }

    /// Pulls the cable: packets are lost in both directions, and no connection is closed.
    pub fn cut(&self) {
        ip(&format!("-n {} link set inside down", self.namespace)).unwrap();
    }

    /// Plugs the cable in again.
    pub fn mend(&self) {
        ip(&format!("-n {} link set inside up", self.namespace)).unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.interface));
        let _ = ip(&format!("netns del {}", self.namespace));
    }
}
