//! A primary of Postgres and its synchronous standby, with sessions whose statements and answers take time.
//!
//! A commit has four steps, each of which can be late or missing:
//!
//! 1. The statement arrives. It can arrive long after its client has given up the connection.
//! 2. The change is in the log of this server. Its session still holds the lock of the owner's row, and nobody sees it.
//! 3. The standby has it. The session releases the lock, and readers see the change. If the wait is cancelled, because the
//!    session is ended, the server restarts or the setting is emptied, readers of this server see it all the same.
//! 4. The answer arrives.
//!
//! A failover makes the standby the primary. The old one does not know it yet: clients that still reach it may read and
//! write there, and nobody confirms their commits, until it is stopped. It comes back as the standby, without the changes
//! that only it had.

use super::fake_postgres::Tables;
use crate::log::block::StreamKey;
use crate::log::ownership::Owner;
use crate::postgres::owner_row::{OwnerRow, Positions};
use crate::sale::record::Record;
use crate::sale::rules::Ack;
use std::time::Duration;
use uuid::Uuid;

/// Length of a sale, in seconds. A world has only one.
pub const PERIOD_S: u32 = 1_000_000;
/// The default of `--standby-patience`.
pub const PATIENCE: Duration = Duration::from_millis(1_500);

/// The records of one stream for one transaction, and the number of those before them.
pub type RowBatch = Vec<(StreamKey, u64, Vec<Record>)>;

/// What a transaction writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub owner: Owner,
    pub ack: Ack,
    /// Time of the report, by the clock of the server. `None` if the owner has ended.
    pub seen_us: Option<i64>,
    pub positions: Vec<(StreamKey, u64)>,
    pub rows: RowBatch,
}

/// A statement on its way to a session, or executed there.
#[derive(Clone, Debug)]
pub enum Statement {
    /// Begin, and lock the owner's row against all other writers: the beginning of a claim and of a takeover.
    Lock,
    /// Begin, and update the row that names this owner. The transaction moves these positions from these values.
    Fence(Owner, Vec<(StreamKey, u64)>),
    Commit(Change),
}

/// The answer to a statement.
#[derive(Clone, Debug)]
pub enum DatabaseReply {
    Locked(Option<OwnerRow>, Positions, Box<Tables>),
    Fenced,
    /// The row names another owner.
    Superseded,
    Failed,
    /// The commit is done. It counts if the standby has confirmed it, or if none has to.
    Committed {
        counts: bool,
    },
}

/// A session of a server.
#[derive(Debug)]
pub struct ServerSession {
    pub id: u64,
    pub machine: usize,
    /// The run whose advisory lock this session holds.
    pub run: Option<Uuid>,
    pub inbox: Option<Statement>,
    pub outbox: Option<DatabaseReply>,
    /// The client has closed the connection.
    pub is_closed: bool,
}

/// What a server takes itself for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It accepts writes. With a false, another server has been made the primary meanwhile.
    Primary {
        is_current: bool,
    },
    /// It receives the log of the primary.
    Replica,
    Stopped,
}

/// One of the two servers.
pub struct PostgresServer {
    pub role: Role,
    /// All changes, in order.
    pub log: Vec<Change>,
    /// What readers see: all changes, but for the last one while its commit waits.
    pub tables: Tables,
    pub row: Option<OwnerRow>,
    visible: usize,
    pub sessions: Vec<ServerSession>,
    /// The session that holds the lock of the owner's row.
    locked_by: Option<u64>,
}

impl PostgresServer {
    fn new(role: Role) -> Self {
        let (log, tables, sessions) = (Vec::new(), Tables::default(), Vec::new());
        PostgresServer { role, log, tables, row: None, visible: 0, sessions, locked_by: None }
    }

    /// Returns the session with this id, unless it has ended.
    pub fn session(&mut self, id: u64) -> Option<&mut ServerSession> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// Returns whether a commit waits for the standby.
    pub fn has_waiting(&self) -> bool {
        self.visible < self.log.len()
    }

    fn show(&mut self) {
        for change in &self.log[self.visible..] {
            self.tables.owner = Some(change.owner);
            self.tables.positions.extend(change.positions.iter().copied());
            self.tables.insert(&change.rows);
            let Change { owner, ack, seen_us, .. } = *change;
            self.row = Some(OwnerRow { owner, sale_period_s: PERIOD_S, ack, patience: Some(PATIENCE), seen_us });
        }
        self.visible = self.log.len();
    }

    fn finish(&mut self, counts: bool) {
        self.show();
        let holder = self.locked_by.take();
        if let Some(session) = holder.and_then(|id| self.session(id)) {
            session.outbox = Some(DatabaseReply::Committed { counts });
        }
    }

    /// Ends a session. Its transaction is rolled back, unless its commit waits: then readers see it.
    pub fn end_session(&mut self, id: u64) {
        self.sessions.retain(|session| session.id != id);
        if self.locked_by == Some(id) {
            self.show();
            self.locked_by = None;
        }
    }

    /// Ends all sessions, as a restart does.
    pub fn end_sessions(&mut self) {
        (0..2).for_each(|machine| self.end_sessions_of(machine));
    }

    /// Ends the sessions of a machine.
    pub fn end_sessions_of(&mut self, machine: usize) {
        let of = self.sessions.iter().filter(|session| session.machine == machine);
        let ids: Vec<u64> = of.map(|session| session.id).collect();
        ids.into_iter().for_each(|id| self.end_session(id));
    }

    /// Cancels the wait of a commit, as `pg_cancel_backend` does. Its client is warned.
    pub fn cancel_wait(&mut self) {
        if self.has_waiting() {
            self.finish(false);
        }
    }

    /// Ends the session that holds the lock of the owner's row.
    pub fn end_holder(&mut self) {
        if let Some(id) = self.locked_by {
            self.end_session(id);
        }
    }

    /// Returns the owner's row, and whether a session holds the advisory lock of its run.
    pub fn look(&self) -> Option<(OwnerRow, bool)> {
        let is_locked = |row: OwnerRow| self.sessions.iter().any(|session| session.run == Some(row.owner.run.id));
        self.row.map(|row| (row, is_locked(row)))
    }

    /// Executes the statement that has arrived at a session. Returns whether it could: the lock may belong to another one.
    fn execute(&mut self, id: u64, clock_us: i64) -> bool {
        let is_free = self.locked_by.is_none_or(|holder| holder == id);
        let session = self.session(id).expect("the session was listed");
        let Some(statement) = session.inbox.take() else { return false };
        if !is_free {
            session.inbox = Some(statement);
            return false;
        }
        match statement {
            Statement::Lock => {
                self.locked_by = self.locked_by.or(Some(id));
                let reply =
                    DatabaseReply::Locked(self.row, self.tables.positions.clone(), Box::new(self.tables.clone()));
                self.reply(id, reply);
            }
            Statement::Fence(owner, from) => {
                let is_moved = from.iter().any(|(key, at)| self.tables.positions.get(key) != Some(at));
                let reply = match (self.tables.owner == Some(owner), is_moved) {
                    (false, _) => DatabaseReply::Superseded,
                    (true, true) => DatabaseReply::Failed,
                    (true, false) => {
                        self.locked_by = Some(id);
                        DatabaseReply::Fenced
                    }
                };
                self.reply(id, reply);
            }
            Statement::Commit(change) => {
                self.locked_by = Some(id);
                self.log.push(Change { seen_us: change.seen_us.map(|_| clock_us), ..change });
            }
        }
        true
    }

    fn reply(&mut self, id: u64, reply: DatabaseReply) {
        self.session(id).expect("the session was listed").outbox = Some(reply);
    }
}

/// Both servers.
pub struct ReplicatedPostgres {
    pub servers: [PostgresServer; 2],
    /// Commits wait for the standby.
    pub is_synchronous: bool,
    /// An operator has emptied `synchronous_standby_names`.
    pub is_emptied: bool,
    /// The clock of both servers. It never shows the same time twice.
    pub clock_us: i64,
    next_session: u64,
    /// Number of changes that only an old primary had.
    pub vanished: u64,
    /// Number of statements that arrived after their client had closed the connection.
    pub late: u64,
}

impl ReplicatedPostgres {
    /// Creates an empty database, with a standby if `is_synchronous`.
    pub fn new(is_synchronous: bool) -> Self {
        let roles = [Role::Primary { is_current: true }, if is_synchronous { Role::Replica } else { Role::Stopped }];
        let servers = roles.map(PostgresServer::new);
        ReplicatedPostgres {
            servers,
            is_synchronous,
            is_emptied: false,
            clock_us: 0,
            next_session: 0,
            vanished: 0,
            late: 0,
        }
    }

    /// Returns the number of the current primary.
    pub fn primary(&self) -> usize {
        let is_it = |server: &PostgresServer| server.role == Role::Primary { is_current: true };
        self.servers.iter().position(is_it).expect("there is always a primary")
    }

    fn standby(&self) -> Option<usize> {
        self.servers.iter().position(|server| server.role == Role::Replica)
    }

    /// Returns whether a server accepts writes.
    pub fn is_writable(&self, server: usize) -> bool {
        matches!(self.servers[server].role, Role::Primary { .. })
    }

    /// Opens a session of a machine. Returns its id.
    pub fn open(&mut self, server: usize, machine: usize) -> u64 {
        self.next_session += 1;
        let (id, inbox, outbox) = (self.next_session, None, None);
        self.servers[server].sessions.push(ServerSession { id, machine, run: None, inbox, outbox, is_closed: false });
        id
    }

    /// Executes the statement that has arrived at a session, or ends the session of a client that has closed it.
    pub fn execute(&mut self, server: usize, id: u64) {
        self.clock_us += 1;
        let is_done = self.servers[server].execute(id, self.clock_us);
        let is_closed = self.servers[server].session(id).is_some_and(|session| session.is_closed);
        self.late += u64::from(is_done && is_closed);
        let is_idle = !self.servers[server].has_waiting() || self.servers[server].locked_by != Some(id);
        if is_closed && !is_done && is_idle {
            self.servers[server].end_session(id);
        }
        self.release(server);
    }

    /// Ends the wait of a commit, if the standby has confirmed it or none has to.
    fn release(&mut self, server: usize) {
        if !self.servers[server].has_waiting() {
            return;
        }
        let is_current = self.servers[server].role == Role::Primary { is_current: true };
        let has_all = |standby: usize| self.servers[standby].log.len() == self.servers[server].log.len();
        if !self.is_synchronous || is_current && self.standby().is_some_and(has_all) {
            self.servers[server].finish(true);
        } else if self.is_emptied {
            self.servers[server].finish(false);
        }
    }

    /// Sends the next change to the standby. Returns whether there was one.
    pub fn replicate(&mut self) -> bool {
        let (primary, Some(standby)) = (self.primary(), self.standby()) else { return false };
        let Some(change) = self.servers[primary].log.get(self.servers[standby].log.len()).cloned() else {
            return false;
        };
        self.servers[standby].log.push(change);
        self.servers[standby].show();
        self.release(primary);
        true
    }

    /// Empties the names of the standbys, or sets them again.
    pub fn set_emptied(&mut self, is_emptied: bool) {
        self.is_emptied = is_emptied && self.is_synchronous;
        (0..2).for_each(|server| self.release(server));
    }

    /// Makes the standby the primary. Returns whether there was one.
    pub fn fail_over(&mut self) -> bool {
        let Some(standby) = self.standby() else { return false };
        let primary = self.primary();
        self.servers[primary].role = Role::Primary { is_current: false };
        self.servers[standby].role = Role::Primary { is_current: true };
        true
    }

    /// Stops the server that is not the primary.
    pub fn stop_other(&mut self) {
        let other = 1 - self.primary();
        self.servers[other].end_sessions();
        self.servers[other].role = Role::Stopped;
    }

    /// Makes the stopped server the standby, with the log of the primary.
    pub fn rejoin(&mut self) {
        let primary = self.primary();
        if self.is_synchronous && self.servers[1 - primary].role == Role::Stopped {
            let log = self.servers[primary].log.clone();
            let common = self.servers[1 - primary].log.iter().zip(&log).take_while(|(one, other)| one == other).count();
            self.vanished += (self.servers[1 - primary].log.len() - common) as u64;
            self.servers[1 - primary] = PostgresServer::new(Role::Replica);
            self.servers[1 - primary].log = log;
            self.servers[1 - primary].show();
            self.release(primary);
        }
    }

    /// Returns whether every server that may become or is the primary has a row for which `is_it` holds.
    pub fn has_row(&self, is_it: impl Fn(&Record) -> bool) -> bool {
        let (primary, standby) = (self.primary(), self.standby());
        let mut servers = [Some(primary), standby].into_iter().flatten().map(|server| &self.servers[server]);
        servers.all(|server| {
            let rows = server.log.iter().flat_map(|change| &change.rows).flat_map(|(_, _, records)| records);
            rows.into_iter().any(&is_it)
        })
    }
}
