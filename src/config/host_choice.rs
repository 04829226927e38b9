//! Which host of a database the next connection tries first.
//!
//! It is the host of the latest session, so that a lost host does not cost every new connection its limit in time. But
//! a server can accept sessions and never confirm a commit, such as a primary that has been replaced and does not know
//! it: its synchronous standbys have left it. After a few sessions without a confirmed commit, the next host comes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sessions in turn on one host without a confirmed commit, after which the next host comes first. A takeover needs two
/// until its first commit.
const SESSIONS: usize = 3;

/// The choice for all connections of the process to one database: clones share it. It is no part of the address, so any
/// two are equal.
#[derive(Clone, Debug, Default)]
pub struct HostChoice(Arc<Choice>);

#[derive(Debug, Default)]
struct Choice {
    /// Number of the host that the next connection tries first.
    first: AtomicUsize,
    /// Sessions on that host since its last confirmed commit.
    sessions: AtomicUsize,
}

impl PartialEq for HostChoice {
    fn eq(&self, _: &HostChoice) -> bool {
        true
    }
}

impl Eq for HostChoice {}

impl HostChoice {
    /// Returns the number of the host that the next connection tries first.
    pub fn first(&self) -> usize {
        self.0.first.load(Ordering::Relaxed)
    }

    /// Notes that a session was opened on `host`, one of `hosts`. Threads may call it at the same time: a lost note only
    /// makes the next choice later.
    pub fn opened(&self, host: usize, hosts: usize) -> HostInUse {
        let Choice { first, sessions } = &*self.0;
        let before = if self.first() == host { sessions.load(Ordering::Relaxed) } else { 0 };
        let (next, count) = if before + 1 < SESSIONS { (host, before + 1) } else { ((host + 1) % hosts, 0) };
        first.store(next, Ordering::Relaxed);
        sessions.store(count, Ordering::Relaxed);
        HostInUse { choice: self.clone(), host }
    }
}

/// The host of a session.
#[derive(Clone, Debug)]
pub struct HostInUse {
    choice: HostChoice,
    host: usize,
}

impl HostInUse {
    /// Notes that the host has confirmed a commit.
    pub fn committed(&self) {
        self.choice.0.first.store(self.host, Ordering::Relaxed);
        self.choice.0.sessions.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_confirms_nothing_gives_way_to_the_next() {
        let choice = HostChoice::default();
        assert_eq!(choice.first(), 0);
        let firsts = [2, 2, 2].map(|host| (choice.opened(host, 3), choice.first()).1);
        assert_eq!(firsts, [2, 2, 0], "the third session was the last one");
        let firsts = [1, 1].map(|host| (choice.opened(host, 3), choice.first()).1);
        assert_eq!(firsts, [1, 1]);
        let third = choice.opened(1, 3);
        assert_eq!(choice.first(), 2);
        third.committed();
        assert_eq!(choice.first(), 1, "a late commit counts");
        let firsts = [1, 1].map(|host| (choice.opened(host, 3), choice.first()).1);
        assert_eq!(firsts, [1, 1], "the count begins anew");
    }
}
