//! Where a row is played: copies of this executable, users, addresses, and a `/dev/shm` of its own where needed.

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

use crate::{Trouble, actor::Actor};

/// Whose process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The user that the protected programs run as, and the attackers that the table calls SU and MP.
    Agent,
    /// Another user: OU.
    Stranger,
}

/// Which executable it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The one that all protected programs run.
    Genuine,
    /// The same bytes under another inode: to the checks, another program.
    Other,
}

/// A namespace that a process has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Of users, none of whom is mapped.
    UnmappedUsers,
    /// Of process numbers.
    OwnPids,
    /// Of mounts, with a /proc that hides the processes that it may not look into.
    HiddenProc,
}

/// Users without any privilege, as far from those that a system has as possible. Only root can take them on.
const AGENT: u32 = 64_201;
const STRANGER: u32 = 64_202;
/// A group that no process is in, but for those that start a program that is set to it.
const LAUNCHER: u32 = 64_203;

/// The stage of one row. Everything on it vanishes with it.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    name: String,
    root: bool,
}

impl Stage {
    /// Sets the stage with copies of `executable`.
    ///
    /// When root, all protected programs and all attackers run as users without privilege: root may do anything, so
    /// that an attack by root would prove nothing.
    pub fn new(executable: &Path) -> Result<Self, Trouble> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "ringfence-attacks-{}-{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = env::temp_dir().join(&name);
        let stage = Self {
            dir,
            name,
            root: geteuid().is_root(),
        };
        let set = || -> std::io::Result<()> {
            fs::DirBuilder::new().mode(0o755).create(&stage.dir)?;
            fs::set_permissions(&stage.dir, fs::Permissions::from_mode(0o755))?;
            for program in [Program::Genuine, Program::Other] {
                copy(executable, &stage.program(program))?;
                fs::set_permissions(stage.program(program), fs::Permissions::from_mode(0o755))?;
            }
            fs::DirBuilder::new().mode(0o700).create(stage.private())?;
            fs::DirBuilder::new().mode(0o755).create(stage.shared())?;
            if stage.root {
                chown(stage.private(), Some(AGENT), Some(AGENT))?;
                chown(stage.shared(), Some(AGENT), Some(AGENT))?;
            }
            Ok(())
        };
        set().map_err(|error| {
            Trouble::wrong(format!("{} could not be set up: {error}", stage.dir.display()))
        })?;
        Ok(stage)
    }

    /// The path of an executable.
    pub fn program(&self, program: Program) -> PathBuf {
        self.dir.join(match program {
            Program::Genuine => "genuine",
            Program::Other => "other",
        })
    }

    /// A directory that only the agent may enter.
    pub fn private(&self) -> PathBuf {
        self.dir.join("private")
    }

    /// A directory that everybody may enter, and in which the agent may make files.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// An abstract address that nothing else uses; `part` tells several of one row apart.
    pub fn address(&self, part: &str) -> String {
        format!("@{}-{part}", self.name)
    }

    /// Whether the rows that need root can be played.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// The group of [`Stage::launcher`].
    pub fn launcher_group(&self) -> u32 {
        LAUNCHER
    }

    /// Starts a process as root, which connects as the agent with the launcher's group, and then drops that.
    pub fn spawn_leaver(&self, address: &str) -> Result<Actor, Trouble> {
        if !self.root {
            return Err(Trouble::NeedsRoot);
        }
        let (uid, group) = (AGENT.to_string(), LAUNCHER.to_string());
        let mut command = Command::new(self.program(Program::Genuine));
        command.args(["role", "attacker", "leaver", &uid, &group, address]);
        Actor::start("the leaver", command.current_dir("/"))
    }

    /// A copy of the genuine executable that runs with another group (setgid). Only root can
    /// make one.
    pub fn launcher(&self) -> Result<PathBuf, Trouble> {
        self.set_to_group(&self.program(Program::Genuine))
    }

    /// The same with any program.
    pub fn set_to_group(&self, program: &Path) -> Result<PathBuf, Trouble> {
        if !self.root {
            return Err(Trouble::NeedsRoot);
        }
        let path = self.dir.join("launcher");
        let make = || -> std::io::Result<()> {
            copy(program, &path)?;
            chown(&path, None, Some(LAUNCHER))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2755))
        };
        make().map_err(|error| Trouble::wrong(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// The Node that is found first; a copy of it, where the agent cannot reach that.
    pub fn node(&self) -> Result<PathBuf, Trouble> {
        let found = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join("node"))
            .find_map(|path| fs::canonicalize(path).ok())
            .ok_or_else(|| Trouble::Skipped("needs node".into()))?;
        if !self.root || is_open_to_all(&found) {
            return Ok(found);
        }
        let path = self.dir.join("node");
        let make = || -> std::io::Result<()> {
            copy(&found, &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        make().map_err(|error| Trouble::wrong(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// What a Node program imports: a copy of the package, which the agent can reach wherever this repository lies.
    pub fn package(&self) -> Result<PathBuf, Trouble> {
        let (own, path) = (
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")),
            self.dir.join("package"),
        );
        let (face, copied) = (own.join("dist/esm/index.js"), path.join("dist/esm/index.js"));
        if !face.exists() {
            return Err(Trouble::Skipped("needs what `npm run build` makes".into()));
        }
        if !path.exists() {
            let make = || -> std::io::Result<()> {
                fs::create_dir(&path)?;
                for part in ["package.json", "dist", "binding"] {
                    run(Command::new("cp").arg("-r").arg(own.join(part)).arg(&path))?;
                }
                // Whatever the umask.
                run(Command::new("chmod").args(["-R", "a+rX"]).arg(&path))
            };
            make().map_err(|error| Trouble::wrong(format!("{}: {error}", path.display())))?;
        }
        Ok(copied)
    }

    /// Starts a program that is none of this crate's, as the agent, with more environment.
    pub fn spawn_other(
        &self,
        name: &'static str,
        program: &Path,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Actor, Trouble> {
        let mut command = self.as_agent(program, environment);
        Actor::start(name, command.args(args).current_dir("/"))
    }

    /// Starts another executable than the stage's two, as the agent, with more environment.
    pub fn spawn_at(
        &self,
        name: &'static str,
        program: &Path,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Actor, Trouble> {
        let mut command = self.as_agent(program, environment);
        Actor::start(name, command.arg("role").args(args).current_dir(self.private()))
    }

    fn as_agent(&self, program: &Path, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        if self.root {
            command.uid(AGENT).gid(AGENT);
        }
        command
    }

    /// Starts a process through a role that puts it into a namespace of its own.
    pub fn spawn_in(&self, name: &'static str, space: Space, args: &[&str]) -> Result<Actor, Trouble> {
        let genuine = self.program(Program::Genuine);
        let mut command = Command::new(&genuine);
        command.current_dir("/").arg("role");
        match space {
            Space::UnmappedUsers => {
                command.arg("unmapped");
                if self.root {
                    command.uid(AGENT).gid(AGENT);
                }
            }
            Space::OwnPids if self.root => drop(command.args(["own-pids", &AGENT.to_string()])),
            Space::HiddenProc if self.root => drop(command.args(["hidden-proc", &AGENT.to_string()])),
            Space::OwnPids | Space::HiddenProc => return Err(Trouble::NeedsRoot),
        }
        Actor::start(name, command.arg(&genuine).arg("role").args(args))
    }

    /// Starts a process.
    pub fn spawn(
        &self,
        name: &'static str,
        who: Who,
        program: Program,
        args: &[&str],
    ) -> Result<Actor, Trouble> {
        Actor::start(name, self.command(who, program, args)?.current_dir("/"))
    }

    fn command(&self, who: Who, program: Program, args: &[&str]) -> Result<Command, Trouble> {
        let mut command = Command::new(self.program(program));
        command.arg("role").args(args);
        match (who, self.root) {
            // The standard library drops all supplementary groups along with root.
            (Who::Agent, true) => drop(command.uid(AGENT).gid(AGENT)),
            (Who::Stranger, true) => drop(command.uid(STRANGER).gid(STRANGER)),
            (Who::Agent, false) => {}
            (Who::Stranger, false) => return Err(Trouble::NeedsRoot),
        }
        Ok(command)
    }

    /// A `/dev/shm` that only the processes started through it see, of the given number of bytes: a full one must
    /// not trouble another row, and what appears in it comes from this row.
    pub fn own_shm(&self, bytes: u64) -> Result<OwnShm<'_>, Trouble> {
        self.own_mounts(bytes, &[])
    }

    /// The same, and a filesystem of its own with a copy of the executable, called `program`, at each of `places`.
    pub fn own_mounts(&self, bytes: u64, places: &[&Path]) -> Result<OwnShm<'_>, Trouble> {
        let mut command = Command::new(self.program(Program::Genuine));
        command.args([
            "role",
            "own-shm",
            &bytes.to_string(),
            if self.root { "root" } else { "user" },
        ]);
        command.args(places);
        let mut keeper = Actor::start("the keeper of /dev/shm", &mut command)?;
        let answer = keeper.line()?;
        if answer != "mounted" {
            return Err(Trouble::Skipped(format!(
                "needs root, or user namespaces for everybody ({answer})"
            )));
        }
        Ok(OwnShm { stage: self, keeper })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// See [`Stage::own_shm`].
#[derive(Debug)]
pub struct OwnShm<'stage> {
    stage: &'stage Stage,
    keeper: Actor,
}

impl OwnShm<'_> {
    /// Starts a process of the agent's that sees this `/dev/shm`.
    pub fn spawn(&self, name: &'static str, program: Program, args: &[&str]) -> Result<Actor, Trouble> {
        self.spawn_at(name, &self.stage.program(program), args)
    }

    /// The same, with any executable.
    pub fn spawn_at(&self, name: &'static str, program: &Path, args: &[&str]) -> Result<Actor, Trouble> {
        let mut command = Command::new(self.stage.program(Program::Genuine));
        command.args(["role", "within", &self.keeper.pid().to_string()]);
        // 0 keeps the user.
        command.arg(if self.stage.root { AGENT } else { 0 }.to_string());
        command.arg(program).arg("role").args(args);
        Actor::start(name, command.current_dir("/"))
    }
}

/// Copies a program, by another process: a child that a thread of this one forks meanwhile would hold the file open for
/// writing, and it could not be executed then (ETXTBSY).
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

/// Whether every user may execute it, and pass through all that lies above it.
fn is_open_to_all(program: &Path) -> bool {
    let may = |path: &Path, bits: u32| {
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bits == bits)
    };
    may(program, 0o005) && program.ancestors().skip(1).all(|above| may(above, 0o001))
}
