//! What masters say, and the views and zones that follow.

mod operator;
mod properties;
mod reference;
mod state;
mod zones;
