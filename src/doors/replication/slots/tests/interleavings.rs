//! Every interleaving of connections that want one slot. Their commands are the shipped ones. What
//! a data core, the control thread and the keeper do between two commands happens in steps, and
//! any step of another connection may come between two of them.

use super::*;
use crate::doors::replication::step::Accepted;
use crate::store::slots::Slot;
use std::collections::{BTreeMap, VecDeque};

/// A connection, and what it still wants.
struct Connection {
    pid: u32,
    /// Gone with the connection.
    conversation: Option<Conversation>,
    commands: VecDeque<&'static str>,
    place: Place,
}

/// Where a connection is.
enum Place {
    /// The control thread takes its next command.
    Commands,
    /// The keeper is at work for it.
    Keeper(SlotTask),
    /// A core streams to it.
    Stream(Accepted),
    /// The core's word that the stream has ended is on its way, and then the client sees the end.
    Ended,
    /// It is closed.
    Gone,
}

/// A mistake on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// The core says that a stream has ended, and gives back what it had some time later.
    SaysFirst,
    /// The same, and the slot is the session's, not the stream's: a session that has it gets it
    /// again, and frees it for whichever of its streams.
    SaysFirstAndKnowsNoToken,
}

struct World<'a> {
    hub: &'a Hub,
    plant: Plant,
    connections: Vec<Connection>,
    /// What a core has not given back though it said so.
    late: Vec<(u32, Accepted)>,
}

impl World<'_> {
    /// Who can do something: a number for each connection, and the last one for a core that is
    /// late.
    fn able(&self) -> Vec<usize> {
        let is_able = |connection: &Connection| !matches!(connection.place, Place::Gone);
        let mut able: Vec<_> =
            (0..self.connections.len()).filter(|n| is_able(&self.connections[*n])).collect();
        able.extend((!self.late.is_empty()).then_some(self.connections.len()));
        able
    }

    fn step(&mut self, n: usize) {
        if n == self.connections.len() {
            let (pid, accepted) = self.late.remove(0);
            return self.give_back(pid, accepted);
        }
        let commands = matches!(self.connections[n].place, Place::Commands);
        if commands && self.plant == Plant::SaysFirstAndKnowsNoToken {
            self.free_for(self.connections[n].pid);
        }
        let (hub, connection) = (self.hub, &mut self.connections[n]);
        let pid = connection.pid;
        match std::mem::replace(&mut connection.place, Place::Commands) {
            Place::Commands => connection.command(hub),
            Place::Keeper(task) => {
                keep(hub, &task);
                let done = SlotDone { task, result: Ok(()) };
                let conversation = connection.conversation.as_ref().unwrap();
                let step = conversation.resume(hub, &session(pid), done, &mut BytesMut::new());
                connection.follow(step);
            }
            Place::Stream(accepted) => {
                connection.place = Place::Ended;
                match self.plant {
                    Plant::Nothing => self.give_back(pid, accepted),
                    _ => self.late.push((pid, accepted)),
                }
            }
            Place::Ended => {}
            Place::Gone => panic!("nothing comes after the end"),
        }
    }

    /// The stream of this session no longer has anything.
    fn give_back(&self, pid: u32, accepted: Accepted) {
        if self.plant == Plant::SaysFirstAndKnowsNoToken {
            self.free_for(pid);
        }
        drop(accepted);
    }

    /// Frees what a stream of this session has.
    fn free_for(&self, pid: u32) {
        let mut slots = self.hub.holds.slots.lock();
        let theirs = |slot: &&Slot| slot.active_pid() == Some(pid);
        let found = slots.iter().find(theirs);
        if let Some((name, token)) = found.and_then(|slot| Some((slot.name.clone(), slot.user()?)))
        {
            slots.release(&name, token);
        }
    }

    /// What must hold after every step.
    fn check(&self) -> Result<(), String> {
        let mut users = BTreeMap::new();
        for connection in &self.connections {
            let Place::Stream(accepted) = &connection.place else { continue };
            let Some(token) = accepted.hold.slot_token() else { continue };
            let slots = self.hub.holds.slots.lock();
            let has = |slot: &&Slot| slot.user() == Some(token);
            let Some(slot) = slots.iter().find(has) else {
                return Err(format!("the slot of stream {} is not its own", connection.pid));
            };
            if slot.active_pid() != Some(connection.pid) {
                return Err(format!("the slot of stream {} shows another user", connection.pid));
            }
            if let Some(other) = users.insert(slot.name.to_string(), connection.pid) {
                return Err(format!("streams {other} and {} share a slot", connection.pid));
            }
        }
        let is_quiet = |place: &Place| matches!(place, Place::Commands | Place::Gone);
        let slots = self.hub.holds.slots.lock();
        // Without a token, what comes after that is the question.
        let asks = self.plant != Plant::SaysFirstAndKnowsNoToken;
        if asks
            && self.connections.iter().all(|connection| is_quiet(&connection.place))
            && let Some(slot) = slots
                .iter()
                .find(|slot| slot.is_used() && slot.lifetime == SlotLifetime::Persistent)
        {
            return Err(format!("all streams have ended, and slot {} is in use", slot.name));
        }
        for slot in slots.iter().filter(|slot| slot.lifetime == SlotLifetime::Temporary) {
            let owner = |connection: &&Connection| Some(connection.pid) == slot.active_pid();
            let owner = self.connections.iter().find(owner);
            if owner.is_none_or(|owner| owner.conversation.is_none()) {
                return Err(format!("temporary slot {} outlives its session", slot.name));
            }
        }
        Ok(())
    }
}

impl Connection {
    fn command(&mut self, hub: &Hub) {
        let Some(text) = self.commands.pop_front() else {
            self.conversation = None;
            self.place = Place::Gone;
            return;
        };
        let conversation = self.conversation.as_mut().unwrap();
        let step =
            conversation.take(hub, &session(self.pid), &mut query(text), &mut BytesMut::new());
        self.follow(step);
    }

    fn follow(&mut self, step: Step) {
        self.place = match step {
            Step::Stream(accepted) => Place::Stream(accepted),
            Step::Slot(task) => Place::Keeper(task),
            Step::Answered => Place::Commands,
            other => panic!("{other:?}"),
        };
    }
}

/// Runs the commands of each connection in every order of their steps. Returns how many orders
/// there are.
fn explore(commands: &[&[&'static str]], plant: Plant) -> Result<usize, String> {
    let hub = serving("15.18", at_most(10));
    // At each step: who was chosen of how many.
    let mut choices: Vec<(usize, usize)> = Vec::new();
    for orders in 1.. {
        ask(&hub, 99, "CREATE_REPLICATION_SLOT s PHYSICAL");
        let connection = |(n, commands): (usize, &&[&'static str])| {
            let pid = n as u32 + 1;
            let conversation = Some(Conversation::new(&hub, &session(pid)));
            let commands = commands.iter().copied().collect();
            Connection { pid, conversation, commands, place: Place::Commands }
        };
        let connections = commands.iter().enumerate().map(connection).collect();
        let mut world = World { hub: &hub, plant, connections, late: Vec::new() };
        for at in 0.. {
            let able = world.able();
            if able.is_empty() {
                break;
            }
            if choices.len() == at {
                choices.push((0, able.len()));
            }
            world.step(able[choices[at].0]);
            let story = |broken| format!("{broken}, after the choices {choices:?}");
            world.check().map_err(story)?;
        }
        drop(world);
        ask(&hub, 99, "DROP_REPLICATION_SLOT s");
        assert!(hub.holds.slots.lock().is_empty() && hub.holds.count() == 0);
        while let Some((chosen, of)) = choices.pop() {
            if chosen + 1 < of {
                choices.push((chosen + 1, of));
                break;
            }
        }
        if choices.is_empty() {
            return Ok(orders);
        }
    }
    unreachable!("the loop has no end of its own")
}

const START: &str = "START_REPLICATION SLOT s 0/6000000";
const DROP: &str = "DROP_REPLICATION_SLOT s";
const CREATE: &str = "CREATE_REPLICATION_SLOT s PHYSICAL";

#[test]
fn one_slot_has_one_user_in_every_interleaving() {
    // The first sends its next START behind its CopyDone.
    let orders = explore(&[&[START, START], &[START, DROP], &[CREATE]], Plant::Nothing).unwrap();
    assert!(orders > 10_000, "{orders}");
    explore(&[&[START], &[START], &[DROP, CREATE]], Plant::Nothing).unwrap();
    let temporary = "CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL";
    let start = "START_REPLICATION SLOT t 0/6000000";
    let (wrong, drop) = ("SHOW nosuch", "DROP_REPLICATION_SLOT t");
    explore(&[&[temporary, start, start], &[start, temporary, drop]], Plant::Nothing).unwrap();
    explore(&[&[temporary, start, wrong], &[temporary, start, wrong]], Plant::Nothing).unwrap();
}

#[test]
fn a_core_that_says_first_leaves_a_slot_in_use_for_those_who_see_the_end() {
    let broken = explore(&[&[START, START], &[START]], Plant::SaysFirst).unwrap_err();
    assert!(broken.starts_with("all streams have ended, and slot s is in use"), "{broken}");
}

/// The next use of the same session is freed by the end of the one before.
#[test]
fn without_a_token_the_slot_of_a_stream_is_not_its_own() {
    let plant = Plant::SaysFirstAndKnowsNoToken;
    let broken = explore(&[&[START, START], &[DROP]], plant).unwrap_err();
    assert!(broken.starts_with("the slot of stream 1 is not its own"), "{broken}");
}
