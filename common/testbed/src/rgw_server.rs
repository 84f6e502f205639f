//! Ceph's S3 gateway for tests: the whole of it, or the gateway alone over a backend that ignores conditional writes.
//!
//! Packages of several hundred megabytes are unpacked into the cache on first use, as root. There is one bucket,
//! [`RgwServer::BUCKET`]; the keys are those of [`crate::S3Server`].

use anyhow::Result;

use crate::scripted::Scripted;

/// What lies below the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RgwKind {
    /// A monitor and an OSD: Ceph as it is run.
    Rados,
    /// SQLite, an experiment of Ceph's: every conditional write succeeds.
    Dbstore,
}

/// A running gateway with its daemons; gone with its data on drop.
#[derive(Debug)]
pub struct RgwServer {
    server: Scripted,
}

impl RgwServer {
    /// The bucket that exists.
    pub const BUCKET: &'static str = "events";

    /// Starts it with its one bucket.
    pub fn start(kind: RgwKind) -> Result<Self> {
        let kind = match kind {
            RgwKind::Rados => "rados",
            RgwKind::Dbstore => "dbstore",
        };
        let server = Scripted::start("rgw", "RGW", 2, vec![("RGW_KIND".to_owned(), kind.to_owned())])?;
        Ok(Self { server })
    }

    /// The address, `http://127.0.0.1:port`; buckets by path, not by host name.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }
}
