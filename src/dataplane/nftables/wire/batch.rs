//! A transaction under construction.
//!
//! Messages are appended in the order in which the kernel shall take them; elements of one set
//! share messages as long as nothing comes between. The batch remembers which Service each
//! element was sent for, so that a refusal leads back to it. Only a finished batch has bytes to
//! send.

use super::elements::ELEMENT_MAX;
use super::uapi::*;
use crate::core::model::{Family, Owner};
use crate::dataplane::nftables::program::TABLE;
use crate::dataplane::nftables::program::sets::SetId;
use crate::host::netlink::attributes::{HEADER, begin_nest, end_nest, put_string};
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, close_message, family_number, message_type,
    put_headers,
};

/// Whether elements are added or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ElementOperation {
    /// `NFT_MSG_NEWSETELEM`.
    Add,
    /// `NFT_MSG_DELSETELEM`.
    Delete,
}

/// The list of elements is one attribute, whose length is 16 bits.
const LIST_MAX: usize = u16::MAX as usize - ELEMENT_MAX;

/// An element message that can still take more.
struct Open {
    family: Family,
    set: SetId,
    operation: ElementOperation,
    bytes: Vec<u8>,
    list_at: usize,
    owners: Vec<(u32, Owner)>,
}

/// What a message of the batch is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The program: a table, a chain, a rule or a set.
    Program {
        /// In which family's tables.
        family: Family,
        /// Which.
        what: String,
    },
    /// Elements of a set.
    Elements {
        /// In which table.
        family: Family,
        /// Which set.
        set: SetId,
        /// On whose behalf: an offset in the message, and who owns the elements from there.
        owners: Vec<(u32, Owner)>,
    },
}

/// A transaction under construction.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where the message begins that was put in last.
    last_at: usize,
    subjects: Vec<Subject>,
    open: Vec<Open>,
    operations: usize,
    one_owner_per_message: bool,
}

/// A transaction to send.
pub(crate) struct FinishedBatch {
    bytes: Vec<u8>,
    subjects: Vec<Subject>,
    operations: usize,
}

impl Batch {
    /// An empty transaction. With `one_owner_per_message` a refusal names one owner even on
    /// kernels that do not say which element of a message they refuse.
    pub(crate) fn new(one_owner_per_message: bool) -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            last_at: 0,
            subjects: Vec::new(),
            open: Vec::new(),
            operations: 0,
            one_owner_per_message,
        };
        batch.put_control(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    fn put_control(&mut self, kind: u16) {
        let start = self.bytes.len();
        put_headers(
            &mut self.bytes,
            kind,
            NLM_F_REQUEST,
            0,
            0,
            NFNL_SUBSYS_NFTABLES,
        );
        close_message(&mut self.bytes, start);
    }

    /// The sequence number of the next message. They start at 1; 0 is the batch itself.
    pub(crate) fn next_sequence(&self) -> u32 {
        u32::try_from(self.subjects.len() + 1).unwrap_or(u32::MAX)
    }

    /// Whether nothing has been put in yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.subjects.is_empty() && self.open.is_empty()
    }

    /// Appends a message of the program, made with [`Self::next_sequence`].
    pub(crate) fn put_program(&mut self, family: Family, message: &[u8], what: String) {
        self.last_at = self.bytes.len();
        self.bytes.extend_from_slice(message);
        self.set_flag(NLM_F_ACK, false);
        self.subjects.push(Subject::Program { family, what });
    }

    /// Appends one element. `put` writes it: at most [`ELEMENT_MAX`] bytes.
    pub(crate) fn put_element(
        &mut self,
        family: Family,
        set: SetId,
        operation: ElementOperation,
        owner: Owner,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        let index = self.open_message(family, set, operation, owner);
        let open = &mut self.open[index];
        if open.owners.last().is_none_or(|(_, last)| *last != owner) {
            let at = u32::try_from(open.bytes.len()).unwrap_or(u32::MAX);
            open.owners.push((at, owner));
        }
        put(&mut open.bytes);
        self.operations += 1;
    }

    fn open_message(
        &mut self,
        family: Family,
        set: SetId,
        operation: ElementOperation,
        owner: Owner,
    ) -> usize {
        let matches =
            |open: &Open| open.family == family && open.set == set && open.operation == operation;
        if let Some(index) = self.open.iter().position(matches) {
            let open = &self.open[index];
            let shares = !self.one_owner_per_message
                || open.owners.last().is_none_or(|(_, last)| *last == owner);
            if shares && open.bytes.len() - open.list_at < LIST_MAX {
                return index;
            }
            let full = self.open.swap_remove(index);
            self.close(full);
        }
        self.open.push(Open::new(family, set, operation));
        self.open.len() - 1
    }

    fn close(&mut self, mut open: Open) {
        end_nest(&mut open.bytes, open.list_at);
        let sequence = self.next_sequence();
        open.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        close_message(&mut open.bytes, 0);
        self.last_at = self.bytes.len();
        self.bytes.extend_from_slice(&open.bytes);
        self.subjects.push(Subject::Elements {
            family: open.family,
            set: open.set,
            owners: open.owners,
        });
    }

    /// Ends the open element messages: what comes next is applied after them.
    pub(crate) fn barrier(&mut self) {
        for open in std::mem::take(&mut self.open) {
            self.close(open);
        }
    }

    /// Sets or clears a flag of the message that was put in last.
    fn set_flag(&mut self, flag: u16, set: bool) {
        let Some(bytes) = self.bytes.get_mut(self.last_at + 6..self.last_at + 8) else {
            return;
        };
        let flags = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let flags = if set { flags | flag } else { flags & !flag };
        bytes.copy_from_slice(&flags.to_ne_bytes());
    }

    /// The finished transaction. Its last message asks for an acknowledgement, and no other.
    pub(crate) fn finish(mut self) -> FinishedBatch {
        self.end();
        self.put_control(NFNL_MSG_BATCH_END);
        self.finished()
    }

    /// The same without its end: the kernel looks at all of it, says what it refuses, and changes nothing
    /// (`nfnetlink_rcv_batch`).
    pub(crate) fn finish_as_rehearsal(mut self) -> FinishedBatch {
        self.end();
        self.finished()
    }

    fn end(&mut self) {
        self.barrier();
        if !self.subjects.is_empty() {
            self.set_flag(NLM_F_ACK, true);
        }
    }

    fn finished(self) -> FinishedBatch {
        FinishedBatch {
            bytes: self.bytes,
            subjects: self.subjects,
            operations: self.operations,
        }
    }
}

impl FinishedBatch {
    /// What to send.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What to send, for good.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Number of element operations.
    pub(crate) const fn operations(&self) -> usize {
        self.operations
    }

    /// Number of messages, without the two around them.
    pub(crate) const fn messages(&self) -> usize {
        self.subjects.len()
    }

    /// The sequence number of the last message.
    pub(crate) fn last(&self) -> u32 {
        u32::try_from(self.subjects.len()).unwrap_or(u32::MAX)
    }

    /// What a sequence number was about.
    pub(crate) fn subject(&self, sequence: u32) -> Option<&Subject> {
        self.subjects
            .get(usize::try_from(sequence).ok()?.checked_sub(1)?)
    }
}

impl Subject {
    /// In which family's tables it is.
    pub(crate) const fn family(&self) -> Family {
        match self {
            Self::Program { family, .. } | Self::Elements { family, .. } => *family,
        }
    }

    /// On whose behalf a message, or the part of it at an offset, was sent.
    pub(crate) fn owners(&self, offset: Option<u32>) -> Vec<Owner> {
        let Self::Elements { owners, .. } = self else {
            return Vec::new();
        };
        if let Some(offset) = offset {
            let index = owners.partition_point(|(start, _)| *start <= offset);
            if let Some((_, owner)) = index.checked_sub(1).and_then(|index| owners.get(index)) {
                return vec![*owner];
            }
        }
        let mut all: Vec<Owner> = owners.iter().map(|(_, owner)| *owner).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Open {
    fn new(family: Family, set: SetId, operation: ElementOperation) -> Self {
        let (kind, flags) = match operation {
            // Without EXCL an element that is there already would be let through silently.
            ElementOperation::Add => (NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL),
            ElementOperation::Delete => (NFT_MSG_DELSETELEM, 0),
        };
        let mut bytes = Vec::with_capacity(256);
        put_headers(
            &mut bytes,
            message_type(NFNL_SUBSYS_NFTABLES, kind),
            NLM_F_REQUEST | flags,
            0,
            family_number(family),
            0,
        );
        put_string(&mut bytes, NFTA_SET_ELEM_LIST_TABLE, TABLE);
        put_string(&mut bytes, NFTA_SET_ELEM_LIST_SET, set.name());
        let list_at = begin_nest(&mut bytes, NFTA_SET_ELEM_LIST_ELEMENTS);
        debug_assert!(list_at + HEADER == bytes.len());
        Self {
            family,
            set,
            operation,
            bytes,
            list_at,
            owners: Vec::new(),
        }
    }
}
