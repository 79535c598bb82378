//! The dictionaries of a table as messages.
//!
//! Consecutive tables of a kind have mostly the same objects, and so the same dictionaries. The
//! dictionaries encoded last are kept, and equal messages are recognised by their address, without
//! comparing their bytes.

use std::sync::Arc;

use super::batch_buffers::{ALIGNMENT, BatchBuffers, Payloads};
use super::content::Column;
use super::ipc::Message;
use super::request_options::CellKind;
use crate::shm::MetaHeader;
use crate::sync::{Mutex, MutexGuard};

/// The dictionaries encoded last, for tables with one kind of cells.
#[derive(Debug, Default)]
pub struct Dictionaries(Mutex<Arc<SentDictionaries>>);

/// The latest dictionaries, and the cells from which they were made.
#[derive(Debug, Default)]
struct SentDictionaries {
    /// By column: the cells of its dictionary.
    cells: Vec<Vec<MetaHeader>>,
    /// The dictionaries as messages.
    messages: Arc<[Message]>,
}

/// Above this total number of cells, dictionaries are encoded anew for each table.
const MAX_KEPT_CELLS: usize = 512;

impl Dictionaries {
    /// The dictionaries of these columns, in the order of the columns.
    pub(super) fn messages(
        &self,
        columns: &[Column],
        kind: CellKind,
        payloads: Payloads<'_>,
    ) -> Arc<[Message]> {
        let made = |(column, id): (&Column, i64)| {
            let message = dictionary_buffers(column, kind, payloads);
            message.into_message(column.cells.len(), Some(id))
        };
        let count: usize = columns.iter().map(|column| column.cells.len()).sum();
        if kind == CellKind::Payload || count > MAX_KEPT_CELLS {
            return columns.iter().zip(0..).map(made).collect();
        }
        let kept = Arc::clone(&self.kept());
        let same = |column: &Column, cells: &[MetaHeader]| {
            column.cells.iter().map(|cell| &cell.header).eq(cells)
        };
        let known: Vec<bool> = columns
            .iter()
            .enumerate()
            .map(|(place, column)| kept.cells.get(place).is_some_and(|cells| same(column, cells)))
            .collect();
        if known.len() == kept.cells.len() && !known.contains(&false) {
            return Arc::clone(&kept.messages);
        }
        let messages = columns.iter().zip(0..).zip(&known).enumerate();
        let messages = messages.map(|(place, (one, known))| match known {
            true => kept.messages[place].clone(),
            false => made(one),
        });
        let headers = |column: &Column| column.cells.iter().map(|cell| cell.header).collect();
        let messages: Arc<[Message]> = messages.collect();
        let cells = columns.iter().map(headers).collect();
        *self.kept() = Arc::new(SentDictionaries { cells, messages: Arc::clone(&messages) });
        messages
    }

    fn kept(&self) -> MutexGuard<'_, Arc<SentDictionaries>> {
        self.0.lock()
    }
}

/// The values of the dictionary of a column: its cells.
pub(super) fn dictionary_buffers(
    column: &Column,
    kind: CellKind,
    payloads: Payloads<'_>,
) -> BatchBuffers {
    let count = column.cells.len();
    let mut buffers = match kind {
        CellKind::Payload => BatchBuffers::default(),
        _ => BatchBuffers::with_capacity(count * MetaHeader::BYTES + ALIGNMENT, 2),
    };
    buffers.cells(count, column.cells.iter().map(|cell| (1, Some(cell))), kind, payloads);
    buffers
}
