//! native-ipc: the slots and acknowledgements of its core over a committed pair of regions; it starts side B itself.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow};
use native_ipc::batch::{ExpectedBatch, ExpectedRegion};
use native_ipc::binding::{BoundReadMapping, BoundWriteMapping};
use native_ipc::core::layout::{
    AcknowledgementRouteSpec, Endpoint, LayoutLimits, RegionSetLayout, RegionSpec as LayoutSpec, RoleId,
    ValidatedRegionLayout, ValidationExpectations,
};
use native_ipc::core::mapping::{ReaderRegion, WriterRegion};
use native_ipc::region::{PrivateRegion, RegionId, RegionOptions, RegionSpec, WriterEndpoint};
use native_ipc::session::{
    AbsoluteDeadline, CoordinatorSession, ExecutableIdentityPolicy, Negotiating, NegotiationDecision,
    NegotiationOutcome, Ready, ReceiverBootstrap, ReceiverSession, SessionCommand, SessionOptions,
};

use crate::driver::{Contender, Job, Measure, Setup, Side as Which, Wait, peer_arguments};
use crate::work::{Buffer, Work, buffer, fill_bytes, sum_bytes};

pub fn takes(measure: Measure, _: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Batch => Err("one slot a publish"),
        Measure::Copy => Err("the same as one"),
        Measure::RttSpin => Err("it does not spin"),
        _ => Ok(()),
    }
}

/// The inheritance of side B from the process that started it.
pub static BOOTSTRAP: Mutex<Option<ReceiverBootstrap>> = Mutex::new(None);

const SCHEMA: [u8; 32] = [1; 32];
const GENERATION: u64 = 1;
const KIND: u32 = native_ipc::control::APPLICATION_CONTROL_KIND_MIN + 1;

fn told<T, E: std::fmt::Debug>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("native-ipc: {error:?}"))
}

fn soon() -> AbsoluteDeadline {
    AbsoluteDeadline::after(Duration::from_secs(60)).expect("a minute from now")
}

enum Session {
    A(CoordinatorSession<Ready>),
    B(ReceiverSession<Ready>),
}

pub struct Side {
    writer: WriterRegion<BoundWriteMapping>,
    reader: ReaderRegion<BoundReadMapping>,
    mine: RoleId,
    theirs: RoleId,
    slots: u64,
    sent: u64,
    received: u64,
    buffer: Buffer,
    session: Session,
}

fn role(of: Which) -> RoleId {
    RoleId::new(of.order(1, 2).0).expect("not zero")
}

fn topology(job: &Job, slots: u32) -> Result<RegionSetLayout> {
    let region = |side, writer| LayoutSpec {
        role: role(side),
        writer,
        slot_count: slots,
        payload_bytes: job.size as u32,
        acknowledgement_count: slots,
    };
    let routes: Vec<_> = [(Which::A, Which::B), (Which::B, Which::A)]
        .into_iter()
        .flat_map(|(owner, target)| {
            (0..slots).map(move |slot| AcknowledgementRouteSpec {
                owner: role(owner),
                target: role(target),
                slot_index: slot,
                cell_index: slot,
            })
        })
        .collect();
    told(RegionSetLayout::calculate(
        SCHEMA,
        GENERATION,
        &[
            region(Which::A, Endpoint::Initiator),
            region(Which::B, Endpoint::Responder),
        ],
        &routes,
        LayoutLimits {
            maximum_mapping_size: 1 << 30,
            maximum_slot_count: slots,
            maximum_acknowledgement_count: slots,
            maximum_payload_bytes: job.size as u32,
        },
    ))
}

/// The layout of one region, validated over a quiet copy: both sides know every byte of it beforehand.
fn layout(topology: &RegionSetLayout, side: Which) -> Result<(ValidatedRegionLayout, Vec<u8>)> {
    let region = topology.region(role(side)).expect("both roles are there");
    let mut bytes = vec![0; region.total_size() as usize];
    told(region.encode_into(&mut bytes))?;
    let expected = ValidationExpectations {
        schema_id: SCHEMA,
        generation: GENERATION,
        role: role(side),
        writer: side.order(Endpoint::Initiator, Endpoint::Responder).0,
        maximum_mapping_size: 1 << 30,
    };
    // SAFETY: the copy is private.
    let layout = told(unsafe { ValidatedRegionLayout::validate(&bytes, expected, topology) })?;
    Ok((layout, bytes))
}

fn options() -> SessionOptions {
    SessionOptions::new(soon(), ExecutableIdentityPolicy::ExactOpenedFile)
}

impl Contender for Side {
    const SPAWNS: bool = true;

    fn open(setup: &mut Setup) -> Result<Self> {
        let job = setup.job.clone();
        // Its set-up compares every route with every other, and looks a route up by bisection for each message.
        let slots = job.slots().min(1024) as u32;
        let topology = topology(&job, slots)?;
        let (layout_a, bytes_a) = layout(&topology, Which::A)?;
        let (layout_b, bytes_b) = layout(&topology, Which::B)?;
        let id = |side: Which| RegionId::new(side.order(1, 2).0).expect("not zero");
        let (session, mut active) = if setup.side == Which::A {
            let mut command = SessionCommand::new(std::env::current_exe()?).arg0("ringfence-bench");
            for argument in peer_arguments(&job)? {
                command = command.arg(argument);
            }
            let session = told(CoordinatorSession::<Negotiating>::spawn(command, options()))?;
            let NegotiationOutcome::Accepted(mut ready) = told(session.decide(NegotiationDecision::Accept))?
            else {
                return Err(anyhow!("native-ipc: refused"));
            };
            let mut batch = told(ready.new_transfer_batch())?;
            for (side, writer, bytes) in [
                (Which::A, WriterEndpoint::Coordinator, &bytes_a),
                (Which::B, WriterEndpoint::Receiver, &bytes_b),
            ] {
                let mut region = told(PrivateRegion::allocate(RegionOptions::fixed(bytes.len())))?;
                region.initialize(|memory| memory[..bytes.len()].copy_from_slice(bytes));
                told(batch.add(told(region.prepare(RegionSpec { id: id(side), writer }))?))?;
            }
            let active = told(ready.transfer_batch(batch, soon()))?;
            (Session::A(ready), active)
        } else {
            let bootstrap = BOOTSTRAP
                .lock()
                .expect("not poisoned")
                .take()
                .expect("started by side A");
            let session = told(ReceiverSession::<Negotiating>::from_bootstrap(
                bootstrap,
                options(),
            ))?;
            let NegotiationOutcome::Accepted(mut ready) =
                told(session.decide_after_coordinator(|_| NegotiationDecision::Accept))?
            else {
                return Err(anyhow!("native-ipc: refused"));
            };
            let expected = told(ExpectedBatch::try_from_regions(vec![
                ExpectedRegion::new(id(Which::A), WriterEndpoint::Coordinator, bytes_a.len()),
                ExpectedRegion::new(id(Which::B), WriterEndpoint::Receiver, bytes_b.len()),
            ]))?;
            let active = told(ready.receive_batch(expected, soon()))?;
            (Session::B(ready), active)
        };
        let (mine, theirs, own, other) = if setup.side == Which::A {
            (Which::A, Which::B, layout_a, layout_b)
        } else {
            (Which::B, Which::A, layout_b, layout_a)
        };
        let mut writer = told(active.take_writer(id(mine)))?;
        let reader = told(active.take_reader(id(theirs)))?;
        let all = 0..writer.len();
        told(writer.prefault(all))?;
        told(reader.prefault(0..reader.len()))?;
        Ok(Self {
            writer: told(writer.bind(own, topology.clone()))?,
            reader: told(reader.bind(other, topology))?,
            mine: role(mine),
            theirs: role(theirs),
            slots: slots.into(),
            sent: 0,
            received: 0,
            buffer: buffer(job.size),
            session,
        })
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        for n in 0..work.count {
            self.publish(work.first_word(n))?;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let mut total = 0u64;
        for _ in 0..work.count {
            total = total.wrapping_add(self.take()?);
        }
        Ok(total)
    }

    fn send_one(&mut self, _: usize, start: u64, wait: Wait) -> Result<()> {
        if wait == Wait::Poll {
            return self.publish(start);
        }
        fill_bytes(&mut self.buffer, start);
        told(match &mut self.session {
            Session::A(session) => session.send_control(KIND, &self.buffer, soon()),
            Session::B(session) => session.send_control(KIND, &self.buffer, soon()),
        })
    }

    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        if wait == Wait::Poll {
            return self.take();
        }
        let frame = told(match &mut self.session {
            Session::A(session) => session.receive_control(soon()),
            Session::B(session) => session.receive_control(soon()),
        })?;
        Ok(sum_bytes(frame.payload()))
    }
}

impl Side {
    #[inline(always)]
    fn publish(&mut self, start: u64) -> Result<()> {
        let slot = (self.sent % self.slots) as u32;
        let sequence = self.sent + 1;
        let acknowledgement = if sequence > self.slots {
            // The reader's cell for this slot, until it has seen the lap before.
            Some(loop {
                let seen = told(self.reader.acknowledgement(self.mine, slot))?.observe();
                if seen.sequence() == sequence - self.slots {
                    break seen;
                }
                std::hint::spin_loop();
            })
        } else {
            None
        };
        fill_bytes(&mut self.buffer, start);
        told(self.writer.publish(slot, sequence, acknowledgement, &self.buffer))?;
        self.sent = sequence;
        Ok(())
    }

    #[inline(always)]
    fn take(&mut self) -> Result<u64> {
        let slot = (self.received % self.slots) as u32;
        let sequence = self.received + 1;
        let seen = loop {
            match told(self.reader.slot(slot))?.observe(sequence) {
                Ok(seen) => break seen,
                Err(_) => std::hint::spin_loop(),
            }
        };
        let length = told(self.reader.copy_payload_into(slot, sequence, &mut self.buffer))?;
        told(told(self.writer.acknowledgement(self.theirs, slot))?.acknowledge(seen))?;
        self.received = sequence;
        Ok(sum_bytes(&self.buffer[..length]))
    }
}
