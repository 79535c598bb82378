//! The versions of each path over time, as far as the source has reported them, and the link from
//! each version to its object.

pub(crate) mod catalog;
mod catalog_publishing;
mod catalog_refresh;
mod catalog_restart;
pub(crate) mod linked_timeline;
pub(crate) mod look_up_record;
pub(crate) mod object_index;
pub(crate) mod pace;
mod publication;
mod publish_queue;
pub(crate) mod publisher;
pub(crate) mod query_times;
mod series;
pub(crate) mod span_pages;
