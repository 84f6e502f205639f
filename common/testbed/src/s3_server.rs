//! A real S3 server for tests: versitygw on loopback, on a port and in a folder of its own.
//!
//! It checks signatures and keeps conditional writes. A bucket is a folder and an object is a file, so a test can look at and
//! spoil what the store holds. The data survives `stop` and `kill9` until the value is dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::scripted::Scripted;

/// A running store; gone with its data on drop.
#[derive(Debug)]
pub struct S3Server {
    server: Scripted,
}

impl S3Server {
    /// The key of the user who may everything.
    pub const ACCESS_KEY: &'static str = "tapedeck";
    /// The secret of [`Self::ACCESS_KEY`].
    pub const SECRET_KEY: &'static str = "tapedeck-secret";
    /// The key of a user without any rights: every call answers 403.
    pub const GUEST_ACCESS_KEY: &'static str = "guest";
    /// The secret of [`Self::GUEST_ACCESS_KEY`].
    pub const GUEST_SECRET_KEY: &'static str = "guest-secret";
    /// The region of all signatures.
    pub const REGION: &'static str = "us-east-1";

    /// Starts a store without buckets.
    pub fn start() -> Result<Self> {
        let server = Scripted::start("s3", "S3", 2, Vec::new())?;
        Ok(Self { server })
    }

    /// The address, `http://127.0.0.1:port`; buckets by path, not by host name.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.server.port()))
    }

    /// Makes an empty bucket.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        std::fs::create_dir(self.bucket_dir(name)).with_context(|| format!("bucket {name}"))
    }

    /// Where the objects of a bucket lie on disk; an object's path is its key.
    pub fn bucket_dir(&self, name: &str) -> PathBuf {
        self.server.folder().join("objects").join(name)
    }

    /// What a client finds in its environment: keys and region.
    pub fn environment() -> [(&'static str, &'static str); 3] {
        [("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY), ("AWS_REGION", Self::REGION)]
    }

    /// Stops the store; its data stays.
    pub fn stop(&self) -> Result<()> {
        self.server.verb("stop")
    }

    /// Kills the store with SIGKILL; its data stays as it is.
    pub fn kill9(&self) -> Result<()> {
        self.server.verb("kill9")
    }

    /// Starts the store again on the same port and data.
    pub fn start_again(&self) -> Result<()> {
        self.server.verb("start")
    }
}

/// One store for all tests of a test binary, started on first use, ended with the process.
///
/// Panics when the server can't be had: a missing server is a failed test.
pub fn shared_s3() -> &'static S3Server {
    static SHARED: OnceLock<S3Server> = OnceLock::new();
    SHARED.get_or_init(|| S3Server::start().expect("the tests need a real S3 server"))
}
