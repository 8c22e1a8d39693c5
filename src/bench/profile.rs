//! The characteristics of a load: how much WAL, in commits of which size, at what times.
//!
//! The profiles follow figures that operators of fleets have published. Where a
//! figure is an assumption of ours, the profile's documentation says so.

use super::random::Random;
use crate::wal::synth::COMMIT_RECORD;
use crate::wire::units::{SizeUnit, UnitFault, format_bytes, parse_bytes};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A megabyte as `50MB` means it.
const MB: u64 = 1 << 20;
const KB: u64 = 1 << 10;

/// The largest commit: it is made in memory as a whole.
const MAX_COMMIT: u64 = 256 << 20;

/// Loads after public figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Profile {
    /// Many standbys, little WAL: 1 MB/s for 50 to 100 and more (Booking.com's binlog
    /// servers). Commits of 1 to 4 kB.
    Wide,
    /// Web application: 30 MB/s on average with peaks of 100 MB/s for 8 to 12 standbys.
    /// GitLab throttles its migrations at 70 MB/s of WAL; average, peaks and commits of
    /// 1 to 10 kB are assumptions.
    #[default]
    Saas,
    /// One writer, about 50 standbys in many regions, more than 100 wanted (OpenAI).
    /// 100 MB/s, commits of 1 to 10 kB and the waves of full-page images are
    /// assumptions.
    Giant,
    /// 5 MB/s, and 500 MB/s for 6 s of every minute: VACUUM or a nightly load. 53 and
    /// 66 MiB/s on average have been reported to pgBackRest; the shape is an assumption.
    Burst,
    /// One small commit a second, and a new segment every minute (archive_timeout):
    /// servers that write next to nothing for hours (barman, databasus).
    Idle,
    /// 50 MB/s in commits of 8 kB, unless other figures are given.
    Custom,
}

impl Profile {
    /// How many standbys the fleets of this kind have.
    pub const fn standbys(self) -> usize {
        match self {
            Self::Wide => 100,
            Self::Saas | Self::Idle => 10,
            Self::Giant | Self::Custom => 50,
            Self::Burst => 6,
        }
    }

    /// The load.
    const fn load(self) -> Load {
        let plain = Load {
            profile: self,
            rate: Rate::PerSecond(50 * MB),
            burst: None,
            commit_size: CommitSize::Fixed(8 * KB),
            images: None,
            switch_every: None,
            total: None,
            seed: 1,
        };
        match self {
            Self::Wide => Load {
                rate: Rate::PerSecond(MB),
                commit_size: CommitSize::Between(KB, 4 * KB),
                ..plain
            },
            Self::Saas => Load {
                rate: Rate::PerSecond(20 * MB),
                burst: Some(Burst {
                    first: Duration::from_secs(20),
                    every: Duration::from_secs(40),
                    lasts: Duration::from_secs(5),
                    rate: 100 * MB,
                }),
                commit_size: CommitSize::Between(KB, 10 * KB),
                images: Some(Images {
                    every: Duration::from_secs(300),
                    lasts: Duration::from_secs(60),
                    percent: 30,
                }),
                ..plain
            },
            Self::Giant => Load {
                rate: Rate::PerSecond(100 * MB),
                commit_size: CommitSize::Between(KB, 10 * KB),
                images: Some(Images {
                    every: Duration::from_secs(300),
                    lasts: Duration::from_secs(90),
                    percent: 50,
                }),
                ..plain
            },
            Self::Burst => Load {
                rate: Rate::PerSecond(5 * MB),
                burst: Some(Burst {
                    first: Duration::from_secs(12),
                    every: Duration::from_secs(60),
                    lasts: Duration::from_secs(6),
                    rate: 500 * MB,
                }),
                commit_size: CommitSize::Between(KB, 10 * KB),
                ..plain
            },
            Self::Idle => Load {
                rate: Rate::PerSecond(256),
                commit_size: CommitSize::Fixed(256),
                switch_every: Some(Duration::from_secs(60)),
                ..plain
            },
            Self::Custom => plain,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wide => "wide",
            Self::Saas => "saas",
            Self::Giant => "giant",
            Self::Burst => "burst",
            Self::Idle => "idle",
            Self::Custom => "custom",
        })
    }
}

/// How fast WAL is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// Bytes per second, whatever the server does: an open loop.
    PerSecond(u64),
    /// As fast as the server takes it: a closed loop.
    Max,
}

/// Why a text is not a rate or size of a load.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadFault {
    /// Not a size.
    #[error(transparent)]
    Unit(#[from] UnitFault),
    /// A rate of zero.
    #[error("the rate must not be 0")]
    NoRate,
    /// A commit that cannot be made.
    #[error(
        "a commit must have {} to {} of WAL",
        format_bytes(COMMIT_RECORD),
        format_bytes(MAX_COMMIT)
    )]
    CommitSize,
    /// The larger end first.
    #[error("the lower commit size is greater than the upper one")]
    Range,
    /// Three figures of which two determine the third.
    #[error("give at most two of rate, commit size and commits per second")]
    Overdetermined,
    /// A closed loop has no commits per second.
    #[error("rate max and commits per second exclude each other")]
    MaxCommits,
}

impl FromStr for Rate {
    type Err = LoadFault;

    /// `50MB`, `50MB/s`, `max`.
    fn from_str(text: &str) -> Result<Self, LoadFault> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match parse_bytes(text.strip_suffix("/s").unwrap_or(text), SizeUnit::Byte)? {
            0 => Err(LoadFault::NoRate),
            bytes => Ok(Self::PerSecond(bytes)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(bytes) => write!(f, "{}/s", format_bytes(*bytes)),
            Self::Max => f.write_str("max"),
        }
    }
}

/// Bytes of WAL per commit, its record included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitSize {
    /// Always the same.
    Fixed(u64),
    /// Uniformly distributed from the first to the second.
    Between(u64, u64),
}

impl CommitSize {
    /// The average number of bytes.
    pub const fn mean(self) -> u64 {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Between(from, to) => from.midpoint(to),
        }
    }

    /// The size of one commit.
    pub const fn draw(self, random: &mut Random) -> u64 {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Between(from, to) => random.between(from, to),
        }
    }

    /// The greatest number of bytes.
    pub const fn max(self) -> u64 {
        match self {
            Self::Fixed(bytes) | Self::Between(_, bytes) => bytes,
        }
    }

    fn check(self) -> Result<Self, LoadFault> {
        let (from, to) = match self {
            Self::Fixed(bytes) => (bytes, bytes),
            Self::Between(from, to) => (from, to),
        };
        if from > to {
            return Err(LoadFault::Range);
        }
        let good = from >= COMMIT_RECORD && to <= MAX_COMMIT;
        good.then_some(self).ok_or(LoadFault::CommitSize)
    }
}

impl FromStr for CommitSize {
    type Err = LoadFault;

    /// `8kB`, or a range: `1kB-10kB`.
    fn from_str(text: &str) -> Result<Self, LoadFault> {
        let bytes = |text| parse_bytes(text, SizeUnit::Byte);
        match text.split_once('-') {
            Some((from, to)) => Self::Between(bytes(from)?, bytes(to)?),
            None => Self::Fixed(bytes(text)?),
        }
        .check()
    }
}

impl fmt::Display for CommitSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(bytes) => f.write_str(&format_bytes(*bytes)),
            Self::Between(from, to) => {
                write!(f, "{}-{}", format_bytes(*from), format_bytes(*to))
            }
        }
    }
}

/// A different rate for some time, periodically.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Burst {
    /// From the start of the load to the first one.
    pub first: Duration,
    /// From the start of one to the start of the next.
    pub every: Duration,
    /// How long one lasts.
    pub lasts: Duration,
    /// Bytes per second while it lasts.
    pub rate: u64,
}

/// Waves of full-page images, as checkpoints cause them: the first record of a wave is one with
/// this probability, which falls to zero by the end of the wave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Images {
    /// From one checkpoint to the next; the first is at the start of the load.
    pub every: Duration,
    /// How long a wave lasts.
    pub lasts: Duration,
    /// The probability at its start.
    pub percent: u8,
}

/// A load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Load {
    /// The profile it comes from.
    pub profile: Profile,
    /// How fast WAL is made outside bursts.
    pub rate: Rate,
    /// Bursts.
    pub burst: Option<Burst>,
    /// How large commits are. A commit during a wave of images is larger.
    pub commit_size: CommitSize,
    /// Full-page images.
    pub images: Option<Images>,
    /// How often the segment is switched.
    pub switch_every: Option<Duration>,
    /// The number of bytes after which it ends.
    pub total: Option<u64>,
    /// The seed for contents and sizes.
    pub seed: u64,
}

/// Figures that replace those of a profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// The rate; bursts scale with it.
    pub rate: Option<Rate>,
    /// The size of commits.
    pub commit_size: Option<CommitSize>,
    /// Commits per second; the rate or the commit size follows from it.
    pub commits_per_second: Option<u32>,
    /// The number of bytes after which it ends.
    pub total: Option<u64>,
    /// The seed for contents and sizes.
    pub seed: Option<u64>,
}

impl Load {
    /// The load of a profile, with the given figures in place of its own.
    pub fn new(profile: Profile, figures: &Figures) -> Result<Self, LoadFault> {
        let mut load = profile.load();
        load.total = figures.total;
        load.seed = figures.seed.unwrap_or(load.seed);
        if let Some(size) = figures.commit_size {
            load.commit_size = size.check()?;
        }
        if let Some(rate) = figures.rate {
            load.change_rate(rate)?;
        }
        let Some(commits) = figures.commits_per_second.map(u64::from) else { return Ok(load) };
        match (figures.rate, figures.commit_size) {
            (Some(_), Some(_)) => return Err(LoadFault::Overdetermined),
            (Some(Rate::Max), None) => return Err(LoadFault::MaxCommits),
            (None, Some(size)) => {
                load.change_rate(Rate::PerSecond(commits.saturating_mul(size.mean())))?;
            }
            (_, None) => {
                let Rate::PerSecond(rate) = load.rate else { return Err(LoadFault::MaxCommits) };
                let size = rate.checked_div(commits).ok_or(LoadFault::NoRate)?;
                load.commit_size = CommitSize::Fixed(size).check()?;
            }
        }
        Ok(load)
    }

    fn change_rate(&mut self, rate: Rate) -> Result<(), LoadFault> {
        match (rate, self.rate) {
            (Rate::PerSecond(0), _) => return Err(LoadFault::NoRate),
            (Rate::PerSecond(new), Rate::PerSecond(old)) => {
                if let Some(burst) = &mut self.burst {
                    let scaled = u128::from(burst.rate) * u128::from(new) / u128::from(old.max(1));
                    burst.rate = u64::try_from(scaled).unwrap_or(u64::MAX).max(1);
                }
            }
            _ => self.burst = None,
        }
        self.rate = rate;
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in commits of {}", self.profile, self.rate, self.commit_size)?;
        if let Some(burst) = self.burst {
            write!(
                f,
                ", {} for {:?} every {:?}",
                Rate::PerSecond(burst.rate),
                burst.lasts,
                burst.every
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for (text, rate) in [
            ("50MB", Rate::PerSecond(50 * MB)),
            ("50MB/s", Rate::PerSecond(50 * MB)),
            ("1500", Rate::PerSecond(1500)),
            ("max", Rate::Max),
        ] {
            assert_eq!(text.parse(), Ok(rate));
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        assert_eq!("0".parse::<Rate>(), Err(LoadFault::NoRate));
        assert!(matches!("fast".parse::<Rate>(), Err(LoadFault::Unit(_))));
        let range = CommitSize::Between(KB, 10 * KB);
        assert_eq!("1kB-10kB".parse(), Ok(range));
        assert_eq!(range.to_string(), "1kB-10kB");
        assert_eq!((range.mean(), range.max()), (5632, 10_240));
        assert_eq!("8kB".parse(), Ok(CommitSize::Fixed(8 * KB)));
        assert_eq!("2kB-1kB".parse::<CommitSize>(), Err(LoadFault::Range));
        assert_eq!("39".parse::<CommitSize>(), Err(LoadFault::CommitSize));
        assert_eq!("1GB".parse::<CommitSize>(), Err(LoadFault::CommitSize));
    }

    #[test]
    fn two_of_three_figures_make_the_third() {
        let load = |rate: Option<&str>, size: Option<&str>, commits| {
            let figures = Figures {
                rate: rate.map(|text| text.parse().unwrap()),
                commit_size: size.map(|text| text.parse().unwrap()),
                commits_per_second: commits,
                ..Figures::default()
            };
            Load::new(Profile::Custom, &figures).map(|load| (load.rate, load.commit_size))
        };
        let fixed = |rate, size| Ok((Rate::PerSecond(rate), CommitSize::Fixed(size)));
        assert_eq!(load(None, None, None), fixed(50 * MB, 8 * KB));
        assert_eq!(load(Some("8MB"), None, Some(1024)), fixed(8 * MB, 8 * KB));
        assert_eq!(load(None, Some("1kB"), Some(100)), fixed(100 * KB, KB));
        assert_eq!(load(None, None, Some(50)), fixed(50 * MB, MB));
        assert_eq!(load(Some("1MB"), Some("1kB"), Some(1)), Err(LoadFault::Overdetermined));
        assert_eq!(load(Some("max"), None, Some(1)), Err(LoadFault::MaxCommits));
        assert_eq!(load(Some("1kB"), None, Some(1000)), Err(LoadFault::CommitSize));
        assert_eq!(load(Some("1kB"), None, Some(0)), Err(LoadFault::NoRate));
    }

    #[test]
    fn bursts_follow_the_rate() {
        let half = Figures { rate: Some(Rate::PerSecond(10 * MB)), ..Figures::default() };
        let load = Load::new(Profile::Saas, &half).unwrap();
        assert_eq!(load.burst.unwrap().rate, 50 * MB);
        let max = Figures { rate: Some(Rate::Max), ..Figures::default() };
        assert_eq!(Load::new(Profile::Saas, &max).unwrap().burst, None);
        let load = Load::new(Profile::Burst, &Figures::default()).unwrap();
        let text = "burst: 5MB/s in commits of 1kB-10kB, 500MB/s for 6s every 60s";
        assert_eq!(load.to_string(), text);
    }
}
