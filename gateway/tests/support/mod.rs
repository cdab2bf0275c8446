//! What several tests stand on.

pub mod api_server;
