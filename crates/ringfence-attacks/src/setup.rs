//! The environment of a row: copies of this executable, users, addresses, and a private `/dev/shm` if needed.

use std::{
    env, fs,
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::unistd::geteuid;

use crate::{RowError, process::Process};

/// The user of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The user of the protected programs and of the attackers called SU and MP in the table.
    Agent,
    /// Another user: OU.
    Other,
}

/// The executable of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The executable of all protected programs.
    Genuine,
    /// The same bytes under another inode, which the checks treat as another program.
    Other,
}

/// A namespace that a process has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// A user namespace in which no user is mapped.
    UnmappedUsers,
    /// A pid namespace.
    OwnPids,
    /// A mount namespace with a /proc that hides processes that it may not inspect.
    HiddenProc,
}

/// Unprivileged users, with numbers that a system is unlikely to use. Only root can switch to them.
const AGENT: u32 = 64_201;
const OTHER_USER: u32 = 64_202;
/// A group without members; only a setgid program gives it to a process.
const LAUNCHER: u32 = 64_203;

/// The environment of one row. Dropping it removes everything.
#[derive(Debug)]
pub struct Setup {
    dir: PathBuf,
    name: String,
    root: bool,
}

impl Setup {
    /// Creates the environment with copies of `executable`.
    ///
    /// If run by root, all protected programs and all attackers run as unprivileged users. Root may do
    /// anything, so an attack by root would prove nothing.
    pub fn new(executable: &Path) -> Result<Self, RowError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "ringfence-attacks-{}-{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = env::temp_dir().join(&name);
        let setup = Self {
            dir,
            name,
            root: geteuid().is_root(),
        };
        let set_up = || -> std::io::Result<()> {
            fs::DirBuilder::new().mode(0o755).create(&setup.dir)?;
            fs::set_permissions(&setup.dir, fs::Permissions::from_mode(0o755))?;
            for program in [Program::Genuine, Program::Other] {
                copy(executable, &setup.program(program))?;
                fs::set_permissions(setup.program(program), fs::Permissions::from_mode(0o755))?;
            }
            fs::DirBuilder::new().mode(0o700).create(setup.private())?;
            fs::DirBuilder::new().mode(0o755).create(setup.shared())?;
            if setup.root {
                chown(setup.private(), Some(AGENT), Some(AGENT))?;
                chown(setup.shared(), Some(AGENT), Some(AGENT))?;
            }
            Ok(())
        };
        set_up().map_err(|error| {
            RowError::wrong(format!("{} could not be set up: {error}", setup.dir.display()))
        })?;
        Ok(setup)
    }

    /// Returns the path of an executable.
    pub fn program(&self, program: Program) -> PathBuf {
        self.dir.join(match program {
            Program::Genuine => "genuine",
            Program::Other => "other",
        })
    }

    /// Returns a directory that only the agent may enter.
    pub fn private(&self) -> PathBuf {
        self.dir.join("private")
    }

    /// Returns a directory that everyone may enter, and in which the agent may create files.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Returns an abstract address that nothing else uses. `part` distinguishes several addresses of one row.
    pub fn address(&self, part: &str) -> String {
        format!("@{}-{part}", self.name)
    }

    /// Whether rows that need root can run.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Returns the group of [`Setup::launcher`].
    pub fn launcher_group(&self) -> u32 {
        LAUNCHER
    }

    /// Starts a process as root that connects as the agent with the launcher's group, and then drops that
    /// group.
    pub fn spawn_group_dropper(&self, address: &str) -> Result<Process, RowError> {
        if !self.root {
            return Err(RowError::NeedsRoot);
        }
        let (uid, group) = (AGENT.to_string(), LAUNCHER.to_string());
        let mut command = Command::new(self.program(Program::Genuine));
        command.args(["role", "attacker", "group-dropper", &uid, &group, address]);
        Process::start("the group dropper", command.current_dir("/"))
    }

    /// Makes a setgid copy of the genuine executable, which runs with another group. Needs root.
    pub fn launcher(&self) -> Result<PathBuf, RowError> {
        self.set_to_group(&self.program(Program::Genuine))
    }

    /// Makes a setgid copy of any program.
    pub fn set_to_group(&self, program: &Path) -> Result<PathBuf, RowError> {
        if !self.root {
            return Err(RowError::NeedsRoot);
        }
        let path = self.dir.join("launcher");
        let make = || -> std::io::Result<()> {
            copy(program, &path)?;
            chown(&path, None, Some(LAUNCHER))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2755))
        };
        make().map_err(|error| RowError::wrong(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// Returns the first Node in `PATH`, or a copy of it if the agent cannot reach it.
    pub fn node(&self) -> Result<PathBuf, RowError> {
        let found = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join("node"))
            .find_map(|path| fs::canonicalize(path).ok())
            .ok_or_else(|| RowError::Skipped("needs node".into()))?;
        if !self.root || is_open_to_all(&found) {
            return Ok(found);
        }
        let path = self.dir.join("node");
        let make = || -> std::io::Result<()> {
            copy(&found, &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        make().map_err(|error| RowError::wrong(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// Returns the entry point of the npm package, in a copy that the agent can reach wherever this
    /// repository is.
    pub fn package(&self) -> Result<PathBuf, RowError> {
        let (own, path) = (
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")),
            self.dir.join("package"),
        );
        let (face, copied) = (own.join("dist/esm/index.js"), path.join("dist/esm/index.js"));
        if !face.exists() {
            return Err(RowError::Skipped("needs the output of `npm run build`".into()));
        }
        if !path.exists() {
            let make = || -> std::io::Result<()> {
                fs::create_dir(&path)?;
                for part in ["package.json", "dist", "binding"] {
                    run(Command::new("cp").arg("-r").arg(own.join(part)).arg(&path))?;
                }
                // Independent of the umask.
                run(Command::new("chmod").args(["-R", "a+rX"]).arg(&path))
            };
            make().map_err(|error| RowError::wrong(format!("{}: {error}", path.display())))?;
        }
        Ok(copied)
    }

    /// Starts a program that does not belong to this crate, as the agent, with additional environment
    /// variables.
    pub fn spawn_other(
        &self,
        name: &'static str,
        program: &Path,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Process, RowError> {
        let mut command = self.as_agent(program, environment);
        Process::start(name, command.args(args).current_dir("/"))
    }

    /// Starts an executable other than the setup's two, as the agent, with additional environment variables.
    pub fn spawn_at(
        &self,
        name: &'static str,
        program: &Path,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Process, RowError> {
        let mut command = self.as_agent(program, environment);
        Process::start(name, command.arg("role").args(args).current_dir(self.private()))
    }

    fn as_agent(&self, program: &Path, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        if self.root {
            command.uid(AGENT).gid(AGENT);
        }
        command
    }

    /// Starts a process through a role that puts it into its own namespace.
    pub fn spawn_in(
        &self,
        name: &'static str,
        namespace: Namespace,
        args: &[&str],
    ) -> Result<Process, RowError> {
        let genuine = self.program(Program::Genuine);
        let mut command = Command::new(&genuine);
        command.current_dir("/").arg("role");
        match namespace {
            Namespace::UnmappedUsers => {
                command.arg("unmapped");
                if self.root {
                    command.uid(AGENT).gid(AGENT);
                }
            }
            Namespace::OwnPids if self.root => drop(command.args(["own-pids", &AGENT.to_string()])),
            Namespace::HiddenProc if self.root => drop(command.args(["hidden-proc", &AGENT.to_string()])),
            Namespace::OwnPids | Namespace::HiddenProc => return Err(RowError::NeedsRoot),
        }
        Process::start(name, command.arg(&genuine).arg("role").args(args))
    }

    /// Starts a process.
    pub fn spawn(
        &self,
        name: &'static str,
        who: User,
        program: Program,
        args: &[&str],
    ) -> Result<Process, RowError> {
        Process::start(name, self.command(who, program, args)?.current_dir("/"))
    }

    fn command(&self, who: User, program: Program, args: &[&str]) -> Result<Command, RowError> {
        let mut command = Command::new(self.program(program));
        command.arg("role").args(args);
        match (who, self.root) {
            // The standard library drops all supplementary groups together with root.
            (User::Agent, true) => drop(command.uid(AGENT).gid(AGENT)),
            (User::Other, true) => drop(command.uid(OTHER_USER).gid(OTHER_USER)),
            (User::Agent, false) => {}
            (User::Other, false) => return Err(RowError::NeedsRoot),
        }
        Ok(command)
    }

    /// Makes a `/dev/shm` of the given size that only processes started through it see. So a full one does
    /// not disturb another row, and everything in it comes from this row.
    pub fn own_shm(&self, bytes: u64) -> Result<OwnShm<'_>, RowError> {
        self.own_mounts(bytes, &[])
    }

    /// Does the same, and mounts a filesystem with a copy of the executable, called `program`, at each of
    /// `places`.
    pub fn own_mounts(&self, bytes: u64, places: &[&Path]) -> Result<OwnShm<'_>, RowError> {
        let mut command = Command::new(self.program(Program::Genuine));
        command.args([
            "role",
            "own-shm",
            &bytes.to_string(),
            if self.root { "root" } else { "user" },
        ]);
        command.args(places);
        let mut mount_owner = Process::start("the owner of /dev/shm", &mut command)?;
        let answer = mount_owner.line()?;
        if answer != "mounted" {
            return Err(RowError::Skipped(format!(
                "needs root or unprivileged user namespaces ({answer})"
            )));
        }
        Ok(OwnShm {
            setup: self,
            mount_owner,
        })
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// See [`Setup::own_shm`].
#[derive(Debug)]
pub struct OwnShm<'setup> {
    setup: &'setup Setup,
    mount_owner: Process,
}

impl OwnShm<'_> {
    /// Starts a process as the agent that sees this `/dev/shm`.
    pub fn spawn(&self, name: &'static str, program: Program, args: &[&str]) -> Result<Process, RowError> {
        self.spawn_at(name, &self.setup.program(program), args)
    }

    /// Does the same with any executable.
    pub fn spawn_at(&self, name: &'static str, program: &Path, args: &[&str]) -> Result<Process, RowError> {
        let mut command = Command::new(self.setup.program(Program::Genuine));
        command.args(["role", "within", &self.mount_owner.pid().to_string()]);
        // 0 keeps the user.
        command.arg(if self.setup.root { AGENT } else { 0 }.to_string());
        command.arg(program).arg("role").args(args);
        Process::start(name, command.current_dir("/"))
    }
}

/// Copies a program in another process. If this process copied it, a child that another thread forks
/// concurrently would hold the file open for writing, and executing it would fail (ETXTBSY).
fn copy(program: &Path, to: &Path) -> std::io::Result<()> {
    run(Command::new("cp").arg(program).arg(to))
}

fn run(command: &mut Command) -> std::io::Result<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("{command:?}: {status}")))
    }
}

/// Whether every user may execute it and enter all directories above it.
fn is_open_to_all(program: &Path) -> bool {
    let may = |path: &Path, bits: u32| {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bits == bits)
    };
    may(program, 0o005) && program.ancestors().skip(1).all(|above| may(above, 0o001))
}
