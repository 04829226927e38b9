//! The requests whose clients no longer wait, and what their owners may still answer.

use crate::sale::command::Command;
use crate::sale::effects::Effects;
use crate::sale::ids::{ShardId, Ticket};
use crate::sale::message::Reply;
use std::collections::BTreeMap;

/// A request whose client no longer waits.
struct GoneRequest {
    command: Command,
    owner: ShardId,
    /// The owner knows that the client is gone.
    is_known: bool,
}

/// All requests whose clients no longer wait, and which are not answered yet.
#[derive(Default)]
pub struct Withdrawals(BTreeMap<u64, GoneRequest>);

impl Withdrawals {
    /// Adds a request that was sent to `origin`, and that `owner` decides.
    pub fn gone(&mut self, origin: u16, Ticket(ticket): Ticket, command: Command, owner: ShardId) {
        let is_known = owner.0 == origin;
        self.0.insert(ticket, GoneRequest { command, owner, is_known });
    }

    /// Notes that the message of a withdrawal arrives at `to`.
    pub fn arrives(&mut self, Ticket(ticket): Ticket, to: ShardId) {
        if let Some(gone) = self.0.get_mut(&ticket) {
            let is_any = matches!(gone.command, Command::CheckoutAny { .. });
            assert!(is_any || gone.owner == to, "a withdrawal is sent to a shard that does not decide the request");
            gone.is_known = true;
        }
    }

    /// Checks that no owner answers a request after it has learned that the client is gone. A checkout may be answered:
    /// its claim can be on its way to the user's owner, or the request in its way back from an ended sale.
    pub fn check(&self, shard: u16, effects: &Effects) {
        let replies = effects.replies.iter().filter_map(|(_, reply)| match reply {
            Reply::Answer { ticket, .. } => Some(*ticket),
            Reply::Claimed { .. } | Reply::SaleChanged { .. } | Reply::NoneFree { .. } | Reply::KeyUnknown { .. } => {
                None
            }
        });
        for Ticket(ticket) in replies.chain(effects.answers.iter().map(|(ticket, _)| *ticket)) {
            let Some(GoneRequest { command, owner, is_known }) = self.0.get(&ticket) else { continue };
            let may_answer = !is_known || owner.0 != shard || command.wants_a_hold();
            assert!(may_answer, "the owner answers {command:?} after its client is gone");
        }
    }

    /// Removes a request, because its answer has arrived. Returns whether its client is gone.
    pub fn answered(&mut self, Ticket(ticket): Ticket) -> bool {
        self.0.remove(&ticket).is_some()
    }
}
