//! A certificate authority for one test, and TLS on the proxy's side.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate authority that nobody knows, and a certificate of its for 127.0.0.1. Its files go on drop.
#[derive(Debug)]
pub struct TestCa {
    folder: PathBuf,
}

impl TestCa {
    /// Makes both, with the `openssl` program.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tapedeck-ca-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let ca = Self { folder };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        ca.openssl(&key, &["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tapedeck tests"])?;
        let names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=server"];
        ca.openssl(&key, &[&signed[..], &names[..]].concat())?;
        Ok(ca)
    }

    /// The authority's certificate (PEM), for whoever is to trust it.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn openssl(&self, key: &[&str], rest: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509"]).args(key).args(rest).current_dir(&self.folder).stdin(Stdio::null());
        let output = command.output().context("certificates of tests are made with openssl")?;
        if !output.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    pub(super) fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let read = |name: &str| -> PathBuf { Path::new(&self.folder).join(name) };
        let certificate = CertificateDer::from_pem_file(read("server.pem"))?;
        let key = PrivateKeyDer::from_pem_file(read("server.key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(Arc::new(config))
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(super) fn accept(client: TcpStream, config: Arc<ServerConfig>) -> Result<StreamOwned<ServerConnection, TcpStream>> {
    Ok(StreamOwned::new(ServerConnection::new(config)?, client))
}
