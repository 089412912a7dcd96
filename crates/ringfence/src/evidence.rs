//! The list of checks made before a channel was opened, with the result of each.

use crate::trace;

/// One check, for logs and audits. A channel exists only if every check that the policy asks for has passed.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The step of the handshake that the check belongs to: `rendezvous`, `credentials`, `executable`,
    /// `hello`, `offer`, `object`, `final` or `ready`; or `verify`, for a later check.
    pub step: &'static str,
    /// The property that was checked.
    pub check: &'static str,
    /// The required value.
    pub wanted: String,
    /// The value found.
    pub found: String,
    /// The result of the check.
    pub outcome: Outcome,
}

named! {
    /// The result of a check. A check that fails is an [`Error`](crate::Error), and then no channel exists.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Outcome {
        /// The found value satisfies the requirement.
        Passed => "passed",
        /// The value was recorded but not compared, because the policy or this kernel leaves it open.
        NotAsked => "not-asked",
        /// A child cannot see this property of its parent from its namespaces. The line that it has inherited proves the
        /// parent, and the child's policy does not name this check.
        NotVisible => "not-visible",
    }
}

/// A check whose requirement is the same in every handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requirement {
    step: &'static str,
    check: &'static str,
    wanted: &'static str,
}

macro_rules! requirements {
    ($($name:ident: $step:literal $check:literal $wanted:literal;)*) => {$(
        pub(crate) const $name: Requirement = Requirement { step: $step, check: $check, wanted: $wanted };
    )*};
}

requirements! {
    FIRST_TO_BIND: "rendezvous" "role" "the first to bind the address is the host";
    FOUND_BOUND: "rendezvous" "role" "a process that finds the address bound is the guest";
    SERVICE_BINDS: "rendezvous" "role" "the service binds the address";
    SUCCESSION: "rendezvous" "role" "the guest of a host that has gone is the host";
    LINE_TO_CHILD: "rendezvous" "line" "no address: a line that the child inherits";
    LINE_FROM_PARENT: "rendezvous" "line" "no address: a line that the parent has left";
    VISIBLE: "credentials" "pid" "visible in this pid namespace";
    ALIVE: "credentials" "process" "alive, and held by a pidfd";
    PRIVATE_LINE: "hello" "line" "a private line; every message with the peer's credentials";
    HARDENED: "hello" "hardened" "this process, after its inspection and before it makes its object";
    ANONYMOUS: "object" "created" "a memfd: exclusive, without a name";
    UNLINKED: "object" "created" "O_CREAT|O_EXCL with mode 0, unlinked, 0 names";
    CHILD_MEMORY: "object" "given" "memory for a child that may not create any";
    SEALED: "object" "sealed" "no further writer, no shrinking, no growing";
    LEASED: "object" "lease" "F_WRLCK granted: no other process has it open";
    TRIPWIRE: "object" "tripwire" "any later open is detected";
    NO_MODE: "object" "mode" "0: no process may open it";
    IN_FLIGHT: "object" "kept" "in flight, in no table of descriptors";
    PASSED_ON: "ready" "passed on" "the listening socket, and the lock beside a path";
    SENT_LAST: "ready" "sent" "after everything else";
    RECEIVED_LAST: "ready" "received" "after everything else";
    CLOSED: "ready" "descriptors" "closed on this side; only the mappings remain";
}

/// The required value of a check that was not asked for.
pub(crate) const NOT_ASKED: &str = "not asked for";

/// Collects [`Evidence`] in the order of the steps.
#[derive(Debug, Default, Clone)]
pub(crate) struct EvidenceLog(Vec<Evidence>);

impl EvidenceLog {
    pub(crate) fn met(&mut self, Requirement { step, check, wanted }: Requirement, found: impl Into<String>) {
        self.passed(step, check, wanted, found);
    }

    pub(crate) fn passed(
        &mut self,
        step: &'static str,
        check: &'static str,
        wanted: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.note(step, check, wanted, found, Outcome::Passed);
    }

    /// Records a value that this kernel or policy leaves open, so that a reader does not think it was
    /// checked.
    pub(crate) fn not_asked(&mut self, step: &'static str, check: &'static str, found: impl Into<String>) {
        self.note(step, check, NOT_ASKED, found, Outcome::NotAsked);
    }

    pub(crate) fn note(
        &mut self,
        step: &'static str,
        check: &'static str,
        wanted: impl Into<String>,
        found: impl Into<String>,
        outcome: Outcome,
    ) {
        let (wanted, found) = (wanted.into(), found.into());
        trace::step(step, check, &wanted, &found, outcome.as_str());
        self.0.push(Evidence {
            step,
            check,
            wanted,
            found,
            outcome,
        });
    }

    /// Moves the checks of another log to the end of this one.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn into_list(self) -> Vec<Evidence> {
        self.0
    }
}
