//! What masters say, and the views that follow.

mod state;
