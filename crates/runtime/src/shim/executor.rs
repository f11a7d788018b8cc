//! The last step inside a container: find the program as Go's `exec.LookPath` does, confine, execute.
//!
//! The texts are those that upstream's runtime leaves in pod statuses; they reach the shim through a file in memory that
//! all processes of one start share, because libcontainer passes on only the outermost message of an error.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::oci_spec::runtime::{Capabilities, LinuxSeccomp, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

/// Where the processes of one start write why it failed.
#[derive(Clone)]
pub(super) struct Report(Arc<File>);

/// Marks the message that is meant for people.
const MARK: u8 = 1;

impl Report {
    pub(super) fn new() -> std::io::Result<Report> {
        Ok(Report(Arc::new(crate::sys::memory_file(c"orlop-report")?)))
    }

    /// One detail, most useful last.
    pub(super) fn note(&self, text: &str) {
        let _ = (&*self.0).write_all(format!("{text}\n").as_bytes());
    }

    /// The message for people.
    fn fail(&self, text: &str) {
        let mut line = vec![MARK];
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        let _ = (&*self.0).write_all(&line);
    }

    /// The message for people, else the details.
    pub(super) fn read(&self) -> String {
        let mut file = &*self.0;
        let mut bytes = Vec::new();
        let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let marked = text.lines().find_map(|line| line.strip_prefix(char::from(MARK)));
        match marked {
            Some(line) => line.to_owned(),
            None => text.lines().collect::<Vec<_>>().join("; "),
        }
    }
}

/// Executes the spec's process.
#[derive(Clone)]
pub(super) struct ProgramExecutor {
    pub(super) report: Report,
    /// Confinement that libcontainer does not apply to processes that join a container.
    pub(super) confine: Option<Confine>,
}

/// seccomp for a joining process, and the capabilities it keeps afterwards (loading a filter needs more of them).
#[derive(Clone)]
pub(super) struct Confine {
    pub(super) seccomp: LinuxSeccomp,
    pub(super) keep: Capabilities,
}

impl Executor for ProgramExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(process) = spec.process() else { return Ok(()) };
        let program = process.args().as_ref().and_then(|args| args.first().cloned()).unwrap_or_default();
        let path = path_variable(process.env().as_deref().unwrap_or_default());
        match look_path(&program, &path) {
            Ok(_) => Ok(()),
            Err(message) => {
                self.report.fail(&message);
                Err(ExecutorValidationError::ArgValidationError(message))
            }
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(confine) = &self.confine {
            confine.apply().map_err(|message| {
                self.report.fail(&message);
                ExecutorError::Other(message)
            })?;
        }
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().as_deref().unwrap_or_default();
        let program = args.first().ok_or(ExecutorError::InvalidArg)?;
        let environment = process.env().as_deref().unwrap_or_default();
        let file = look_path(program, &path_variable(environment)).map_err(ExecutorError::Other)?;
        let path = CString::new(file.as_os_str().as_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        let args: Result<Vec<_>, _> = args.iter().map(|arg| CString::new(arg.as_bytes())).collect();
        let args = args.map_err(|_| ExecutorError::InvalidArg)?;
        let Err(error) = nix::unistd::execv(&path, &args);
        let message = format!("exec {}: {}", file.display(), go_errno(error));
        // As runc does: the container's own output is where people look.
        let _ = writeln!(std::io::stderr(), "{message}");
        self.report.fail(&message);
        Err(ExecutorError::Other(message))
    }
}

impl Confine {
    fn apply(&self) -> Result<(), String> {
        libcontainer::seccomp::initialize_seccomp(&self.seccomp)
            .map_err(|error| format!("load seccomp filter: {error}"))?;
        let keep = self.keep.clone();
        let caps = libcontainer::oci_spec::runtime::LinuxCapabilitiesBuilder::default()
            .bounding(keep.clone())
            .effective(keep.clone())
            .permitted(keep)
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build()
            .map_err(|error| error.to_string())?;
        let syscall = libcontainer::syscall::syscall::create_syscall();
        libcontainer::capabilities::drop_privileges(&caps, &*syscall)
            .map_err(|error| format!("drop capabilities: {error}"))
    }
}

/// The last `PATH=` wins, as when the environment is built.
fn path_variable(environment: &[String]) -> String {
    environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default().to_owned()
}

/// The file to execute, or the message of Go's `exec.Error`.
fn look_path(program: &str, path: &str) -> Result<PathBuf, String> {
    if program.contains('/') {
        return match executable(Path::new(program)) {
            Ok(()) => Ok(PathBuf::from(program)),
            Err(reason) => Err(format!("exec: {program:?}: {reason}")),
        };
    }
    if program.is_empty() {
        return Err("exec: \"\": executable file not found in $PATH".to_owned());
    }
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(program);
        if executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("exec: {program:?}: executable file not found in $PATH"))
}

fn executable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        format!("stat {}: {}", path.display(), go_errno(errno))
    })?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    // The kernel knows about users, groups and capabilities; root needs any execute bit.
    let allowed = nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
    if allowed && metadata.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err("permission denied".to_owned())
    }
}

/// Error texts as Go writes them.
fn go_errno(errno: nix::errno::Errno) -> String {
    errno.desc().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_of_look_path() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
        let tool = dir.path().join("tool");
        std::fs::write(&tool, "").unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("/nowhere:{}", dir.path().display());
        assert_eq!(look_path("tool", &path), Ok(tool.clone()));
        assert_eq!(look_path(tool.to_str().unwrap(), ""), Ok(tool));
        let expect = |program: &str, message: String| assert_eq!(look_path(program, &path), Err(message));
        expect("missing", "exec: \"missing\": executable file not found in $PATH".into());
        expect("plain", "exec: \"plain\": executable file not found in $PATH".into());
        expect("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory".into());
        expect(plain.to_str().unwrap(), format!("exec: {plain:?}: permission denied"));
        expect("/tmp", "exec: \"/tmp\": is a directory".into());
    }

    #[test]
    fn reports_prefer_the_marked_line() {
        let report = Report::new().unwrap();
        report.note("detail one");
        report.note("detail two");
        assert_eq!(report.read(), "detail one; detail two");
        report.fail("the reason");
        assert_eq!(report.read(), "the reason");
    }
}
