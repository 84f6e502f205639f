//! A server run by one of the scripts in `servers/`: own ports, own folder, on a leash.
//! The scripts know how a server is got, started, awaited and stopped; here is only who owns it and for how long.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::leash::Leash;
use crate::ports::PortBlock;

/// Stopped, and its folder removed, on drop or when this process dies.
#[derive(Debug)]
pub(crate) struct Scripted {
    script: PathBuf,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    ports: PortBlock,
    leash: Option<Leash>,
}

impl Scripted {
    /// Starts `servers/<name>.sh` on `ports` ports in a row. `prefix` is what its variables begin with.
    pub(crate) fn start(name: &str, prefix: &str, ports: u16, more: Vec<(String, String)>) -> Result<Self> {
        let ports = PortBlock::claim(ports)?;
        let folder = own_folder(name, ports.first());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").join(format!("{name}.sh"));
        let mut environment = more;
        environment.push((format!("{prefix}_PORT"), ports.first().to_string()));
        environment.push((format!("{prefix}_DIR"), folder.display().to_string()));
        let leash = Leash::new(
            r#""$1" kill9; rm -rf "$2"; sleep 1; rm -rf "$2""#,
            &[script.as_os_str(), folder.as_os_str()],
            &environment,
        )?;
        let server = Self { script, environment, folder, ports, leash: Some(leash) };
        server.verb("start")?;
        Ok(server)
    }

    pub(crate) fn verb(&self, verb: &str) -> Result<()> {
        self.run(&[verb]).map(drop)
    }

    /// Runs the script and returns what it says.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.script)
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} can't be run", self.script.display()))?;
        if !output.status.success() {
            bail!(
                "{} {} failed: {}{}",
                self.script.display(),
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.first()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Its data is thrown away, so a clean stop would only cost time.
        if let Err(error) = self.verb("kill9") {
            eprintln!("a test server could not be stopped: {error:#}");
            return; // The leash stays tied: it tries again when we end.
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        self.leash.take();
    }
}

fn own_folder(name: &str, port: u16) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tapedeck-{name}-{port}-{}-{number}", std::process::id()))
}
