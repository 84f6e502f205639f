//! Azurite for tests: the emulator of Azure Blob Storage that Microsoft publishes. One container, [`AzuriteServer::CONTAINER`].

use anyhow::Result;

use crate::scripted::Scripted;

/// A running emulator; gone with its data on drop.
#[derive(Debug)]
pub struct AzuriteServer {
    server: Scripted,
}

impl AzuriteServer {
    /// The container that exists.
    pub const CONTAINER: &'static str = "events";

    /// Starts it with its one container.
    pub fn start() -> Result<Self> {
        Ok(Self { server: Scripted::start("azurite", "AZURITE", 2, Vec::new())? })
    }

    /// What a client finds in its environment. The account and its key are the emulator's own, and no secret.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let address = format!("http://127.0.0.1:{}", self.server.port());
        [("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()), ("AZURITE_BLOB_STORAGE_URL", address)]
    }
}
