//! The content of a plan's table.

use std::sync::Arc;

use crate::cache::memory::object::PinSet;
use crate::cache::memory::pin_request::PinRequest as _;
use crate::cache::tables::plan::{Assembled, Plan};
use crate::cache::versions::linked_timeline::VersionSet;
use crate::object::{ObjectId, ObjectInfo};
use crate::table::{Content, Objects, TableBody};

/// The objects of a plan, pinned.
#[derive(Debug)]
struct PlanObjects {
    versions: Arc<VersionSet>,
    pins: Arc<PinSet>,
}

impl Objects for PlanObjects {
    fn id(&self, number: u32) -> ObjectId {
        self.versions.id(number as usize)
    }

    fn version(&self, number: u32) -> &ObjectInfo {
        self.versions.info(number as usize)
    }

    fn bytes(&self, number: u32) -> &[u8] {
        self.pins.pins()[number as usize].payload()
    }
}

/// The rows of a plan whose objects are pinned.
pub(crate) fn content_of(plan: &Plan, assembled: &Assembled) -> Content {
    let (columns, timestamps) = (Arc::clone(&assembled.columns), Arc::clone(plan.timestamps()));
    let (versions, pins) = (Arc::clone(plan.versions()), Arc::clone(&assembled.pins));
    let objects = Arc::new(PlanObjects { versions, pins });
    Content { body: TableBody::Rows { columns, timestamps }, objects }
}
