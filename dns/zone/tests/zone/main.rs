//! The zone, from views to answers.

mod answers;
mod cluster;
mod incremental;
mod records;
mod served;
