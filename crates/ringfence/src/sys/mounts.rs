//! The mounts that this process sees.

/// One line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The directory of the filesystem that lies at the mount point.
    pub(crate) root: String,
    pub(crate) point: String,
    /// The type of the filesystem.
    pub(crate) kind: String,
    /// Options of the filesystem, separated by commas.
    pub(crate) options: String,
}

pub(crate) const MOUNTS: &str = "/proc/self/mountinfo";

/// The mounts in the text of [`MOUNTS`].
pub(crate) fn mounts_in(text: &str) -> impl Iterator<Item = Mount> {
    text.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3).map(unescape);
        let mut filesystem = filesystem.split(' ');
        Some(Mount {
            root: mount.next()?,
            point: mount.next()?,
            kind: filesystem.next()?.to_owned(),
            options: filesystem.nth(1)?.to_owned(),
        })
    })
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, character)| {
            text.replace(code, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_root_the_point_the_type_and_the_options() {
        let text = "29 23 0:26 /a\\040b /mnt/c\\134d rw,nosuid shared:4 - cgroup2 cgroup2 rw\n\
                    30 23 0:27 / /mnt rw - cgroup cgroup rw,cpu,memory\n\
                    31 23 0:27 / /mnt rw\n";
        let mount = |root: &str, point: &str, kind: &str, options: &str| Mount {
            root: root.into(),
            point: point.into(),
            kind: kind.into(),
            options: options.into(),
        };
        assert_eq!(
            mounts_in(text).collect::<Vec<_>>(),
            [
                mount("/a b", "/mnt/c\\d", "cgroup2", "rw"),
                mount("/", "/mnt", "cgroup", "rw,cpu,memory"),
            ]
        );
    }
}
