//! Programs onto interfaces: which tier where, and the links that keep them there. Dropping a link detaches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
        xdp::XdpLink,
    },
    util::KernelVersion,
};

use gateway_common::maps::{Vlan, VlanKey, vlan};

use super::{
    Attachment, KernelError, Mode,
    error::{denied, errno},
    netlink::{Kind, Link},
    pin::Pins,
    table::Table,
    vlan::{Below, strips_tags},
};

/// What an interface is to the gateway. The role is the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Clients come through it.
    Uplink,
    /// Endpoints are reached through it.
    Cluster,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Cluster => "cluster",
        }
    }
    const fn xdp(self) -> &'static str {
        match self {
            Self::Uplink => "xdp_uplink",
            Self::Cluster => "xdp_cluster",
        }
    }
    const fn vlan(self) -> u32 {
        match self {
            Self::Uplink => vlan::UPLINK,
            Self::Cluster => vlan::CLUSTER,
        }
    }
    /// `bare`: the device has no link layer.
    const fn tc(self, bare: bool) -> &'static str {
        match (self, bare) {
            (Self::Uplink, false) => "tc_uplink",
            (Self::Uplink, true) => "tc_uplink_bare",
            (Self::Cluster, false) => "tc_cluster",
            (Self::Cluster, true) => "tc_cluster_bare",
        }
    }
}

/// Catches replies of the node's own sockets.
const TC_EGRESS: &str = "tc_egress";
/// The same on a device without a link layer.
const TC_EGRESS_BARE: &str = "tc_egress_bare";

/// Every program that the agent loads at once.
pub(super) const XDP_PROGRAMS: [&str; 3] = ["xdp_uplink", "xdp_cluster", "clock"];
/// As [`XDP_PROGRAMS`], for TC; those of devices without a link layer are loaded for the first such device.
pub(super) const TC_PROGRAMS: [&str; 3] = ["tc_uplink", "tc_cluster", TC_EGRESS];

/// How XDP comes onto an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    /// Not at all.
    None,
    /// Native where the driver has it.
    Try,
    /// Native, or an error.
    Native,
    /// Generic.
    Generic,
}

/// The rule: a driver is asked for XDP only where it pays and works; bridges, overlays and tunnels carry what XDP cannot send.
const fn tier(mode: Mode, kind: Kind, role: Role) -> Tier {
    let card = matches!(kind, Kind::Nic | Kind::Bond);
    let frames = card || matches!(kind, Kind::Veth);
    let uplink = matches!(role, Role::Uplink);
    match mode {
        Mode::Auto if card => Tier::Try,
        Mode::Native if frames || uplink => Tier::Native,
        Mode::Generic if frames || uplink => Tier::Generic,
        Mode::Auto | Mode::Native | Mode::Generic | Mode::Tc | Mode::Off => Tier::None,
    }
}

/// What keeps a program where it is.
#[derive(Debug)]
enum Hold {
    /// This link: dropping it detaches.
    Xdp(#[expect(dead_code, reason = "held for its drop")] XdpLink),
    /// As above.
    Tc(#[expect(dead_code, reason = "held for its drop")] SchedClassifierLink),
    /// A pin, which outlives the agent; `fresh` when this agent made it.
    Pinned { path: PathBuf, fresh: bool },
}

impl Hold {
    /// Detaches.
    fn release(self) {
        if let Self::Pinned { path, .. } = self {
            Pins::unlink(&path);
        }
    }

    const fn is_inherited(&self) -> bool {
        matches!(self, Self::Pinned { fresh: false, .. })
    }
}

#[derive(Debug)]
struct Attached {
    name: String,
    role: Role,
    xdp: Option<(&'static str, Hold)>,
    tc: Vec<Hold>,
    kind: Kind,
    /// Of a VLAN device: XDP on the lowest device takes its frames, by this entry of `VLANS`.
    below: Option<VlanKey>,
}

/// A device that is attached for the VLANs on it alone.
#[derive(Debug)]
struct Lowest {
    xdp: (&'static str, Hold),
    kind: Kind,
}

/// What attaching depends on beside the link itself.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// Of a VLAN device: where its frames are on the wire.
    pub(super) below: Option<Below>,
    /// VLAN devices stand on it.
    pub(super) carries_vlans: bool,
}

impl Attached {
    fn holds(self) -> impl Iterator<Item = Hold> {
        self.xdp.into_iter().map(|(_, hold)| hold).chain(self.tc)
    }
}

/// The attached interfaces, by index.
#[derive(Debug)]
pub(super) struct Attacher {
    mode: Mode,
    pins: Option<Pins>,
    attached: BTreeMap<u32, Attached>,
    lowest: BTreeMap<u32, Lowest>,
    vlans: Table<VlanKey, Vlan>,
    /// Interfaces that could not be attached: told once, tried again when they change.
    failed: HashMap<u32, String>,
}

impl Attacher {
    pub(super) fn new(mode: Mode, pins: Option<Pins>, vlans: Table<VlanKey, Vlan>) -> Self {
        Self { mode, pins, attached: BTreeMap::new(), lowest: BTreeMap::new(), vlans, failed: HashMap::new() }
    }

    #[cfg(test)]
    pub(super) const fn vlans(&self) -> &Table<VlanKey, Vlan> {
        &self.vlans
    }

    /// For people.
    pub(super) fn list(&self) -> Vec<Attachment> {
        self.attached
            .values()
            .map(|a| Attachment {
                interface: a.name.clone(),
                role: a.role.name(),
                xdp: a
                    .xdp
                    .as_ref()
                    .map(|(mode, _)| *mode)
                    .or_else(|| self.xdp_on(a.below?.ifindex).map(|(mode, _)| mode)),
                tc: !a.tc.is_empty(),
            })
            .collect()
    }

    /// Whether the interface is attached in that role, or in the one that includes it.
    pub(super) fn has(&self, index: u32, role: Role) -> bool {
        self.attached.get(&index).is_some_and(|a| a.role == role || a.role == Role::Uplink)
    }

    /// Whether XDP may redirect into the interface.
    pub(super) fn takes_frames(&self, index: u32) -> bool {
        let device = self.attached.get(&index).and_then(|a| a.below).map_or(index, |key| key.ifindex);
        self.xdp_on(device).is_some_and(|(_, kind)| matches!(kind, Kind::Nic | Kind::Veth))
    }

    /// How XDP is attached to that very device.
    fn xdp_on(&self, index: u32) -> Option<(&'static str, Kind)> {
        let own = self.attached.get(&index).and_then(|a| Some((a.xdp.as_ref()?.0, a.kind)));
        own.or_else(|| self.lowest.get(&index).map(|l| (l.xdp.0, l.kind)))
    }

    /// The interface is gone, and what was attached with it.
    pub(super) fn forget(&mut self, index: u32) -> bool {
        self.failed.remove(&index);
        let attached = self.attached.remove(&index);
        let was = attached.is_some();
        if let Some(key) = attached.as_ref().and_then(|a| a.below) {
            self.leave(key);
        }
        attached.into_iter().flat_map(Attached::holds).for_each(Hold::release);
        if let Some(lowest) = self.lowest.remove(&index) {
            lowest.xdp.1.release();
        }
        was
    }

    /// A VLAN's frames are not for XDP any more.
    fn leave(&mut self, key: VlanKey) {
        if let Err(error) = self.vlans.remove(&key) {
            tracing::error!(?key, %error, "a VLAN cannot be taken out of the datapath");
        }
        if !self.attached.values().any(|a| a.below.is_some_and(|other| other.ifindex == key.ifindex))
            && let Some(lowest) = self.lowest.remove(&key.ifindex)
        {
            lowest.xdp.1.release();
        }
    }

    /// The pins that are in use.
    pub(super) fn pinned(&self) -> HashSet<PathBuf> {
        let holds = self.attached.values().flat_map(|a| a.xdp.iter().map(|(_, hold)| hold).chain(&a.tc));
        let holds = holds.chain(self.lowest.values().map(|l| &l.xdp.1));
        holds.filter_map(|hold| if let Hold::Pinned { path, .. } = hold { Some(path.clone()) } else { None }).collect()
    }

    /// Indices of what is attached as `role`.
    pub(super) fn indices(&self, role: Role) -> BTreeSet<u32> {
        self.attached.iter().filter(|(_, a)| a.role == role).map(|(i, _)| *i).collect()
    }

    /// Takes off what this agent has attached; what it found pinned stays.
    pub(super) fn clear(&mut self) {
        let attached = std::mem::take(&mut self.attached);
        let lowest = std::mem::take(&mut self.lowest).into_values().map(|l| l.xdp.1);
        let holds = attached.into_values().flat_map(Attached::holds).chain(lowest);
        holds.filter(|hold| !hold.is_inherited()).for_each(Hold::release);
        self.failed.clear();
    }

    /// Forgets what is attached; what is pinned goes on.
    pub(super) fn let_go(&mut self) {
        self.attached.clear();
        self.lowest.clear();
    }

    /// As [`Self::attach`], in the background, where TC alone is better than nothing: a failure is logged once for each interface
    /// and reason.
    pub(super) fn attach_quietly(&mut self, ebpf: &mut Ebpf, link: &Link, around: &Around, role: Role) -> bool {
        match self.attach_as(ebpf, link, around, role, false) {
            Ok(new) => {
                self.failed.remove(&link.index);
                new
            }
            Err(error) => {
                let why = error.to_string();
                if self.failed.get(&link.index) != Some(&why) {
                    tracing::error!(interface = %link.name, "{why}");
                    self.failed.insert(link.index, why);
                }
                false
            }
        }
    }

    /// Attaches the programs of `role`, as the mode asks; `false` when they are there already.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        link: &Link,
        around: &Around,
        role: Role,
    ) -> Result<bool, KernelError> {
        self.attach_as(ebpf, link, around, role, true)
    }

    fn attach_as(
        &mut self,
        ebpf: &mut Ebpf,
        link: &Link,
        around: &Around,
        role: Role,
        strict: bool,
    ) -> Result<bool, KernelError> {
        if self.has(link.index, role) || link.kind == Kind::Loopback {
            return Ok(false);
        }
        // A cluster interface that becomes an uplink.
        self.attached.remove(&link.index);
        let mut xdp = None;
        let mut below = None;
        let tried = if link.kind == Kind::Vlan && self.mode != Mode::Generic {
            self.attach_below(ebpf, link, around, role, strict).map(|key| below = key)
        } else {
            self.attach_here(ebpf, link, around, role, strict).map(|attached| xdp = attached)
        };
        match tried {
            Err((error, true)) => return Err(error),
            Err((error, false)) => tracing::warn!(interface = %link.name, "{error}; going on with TC alone"),
            Ok(()) => {}
        }
        let bare = link.mac.is_none();
        let mut tc = vec![self.attach_tc(ebpf, link, role.tc(bare), TcAttachType::Ingress)?];
        if role == Role::Uplink {
            let egress = if bare { TC_EGRESS_BARE } else { TC_EGRESS };
            tc.push(self.attach_tc(ebpf, link, egress, TcAttachType::Egress)?);
        }
        tracing::info!(
            interface = %link.name,
            role = role.name(),
            xdp = xdp.as_ref().map(|(mode, _)| *mode).or_else(|| Some(self.xdp_on(below?.ifindex)?.0)).unwrap_or("none"),
            "attached"
        );
        self.attached.insert(link.index, Attached { name: link.name.clone(), role, xdp, tc, kind: link.kind, below });
        if let Some(key) = below {
            let value = Vlan { ifindex: link.index, role: role.vlan() };
            self.vlans.put(&key, &value).map_err(|source| KernelError::map("VLANS", source))?;
        }
        Ok(true)
    }

    /// XDP onto the interface itself, where the mode asks for it. With an error: whether it matters.
    fn attach_here(
        &mut self,
        ebpf: &mut Ebpf,
        link: &Link,
        around: &Around,
        role: Role,
        strict: bool,
    ) -> Result<Option<(&'static str, Hold)>, (KernelError, bool)> {
        let (name, mode, strict) = match tier(self.mode, link.kind, role) {
            Tier::None => return Ok(None),
            // Its frames would begin where XDP does not expect it.
            Tier::Try | Tier::Generic if link.mac.is_none() => return Ok(None),
            Tier::Native if link.mac.is_none() => {
                let why = "it has no link layer: set datapath.mode to auto, generic or tc".to_owned();
                return Err((KernelError::Attach { interface: link.name.clone(), what: "native XDP", why }, strict));
            }
            Tier::Try => ("native", XdpMode::Driver, false),
            Tier::Native => ("native", XdpMode::Driver, strict),
            Tier::Generic => ("generic", XdpMode::Skb, strict),
        };
        // Stripped frames of those VLANs would look like this interface's own.
        if around.carries_vlans && link.kind != Kind::Veth && strips_tags(&link.name) {
            let name = &link.name;
            let why = format!(
                "there are VLANs on it, whose tags it takes off before XDP sees them: `ethtool -K {name} rxvlan off`, or set \
                 datapath.mode: tc"
            );
            return Err((KernelError::Attach { interface: name.clone(), what: "XDP", why }, strict));
        }
        // For its VLANs alone until now.
        let before = self.lowest.remove(&link.index).map(|l| l.xdp.1);
        let fresh = matches!(before, Some(Hold::Pinned { fresh: true, .. }));
        drop(before);
        match self.attach_xdp(ebpf, link, role, name, mode) {
            Ok(Hold::Pinned { path, fresh: new }) => Ok(Some((name, Hold::Pinned { path, fresh: new || fresh }))),
            Ok(hold) => Ok(Some((name, hold))),
            Err(error) => Err((error, strict)),
        }
    }

    /// XDP onto the device that a VLAN's frames arrive on, where it sees their tags; the VLAN's entry in `VLANS` then.
    fn attach_below(
        &mut self,
        ebpf: &mut Ebpf,
        link: &Link,
        around: &Around,
        role: Role,
        strict: bool,
    ) -> Result<Option<VlanKey>, (KernelError, bool)> {
        let native = self.mode == Mode::Native;
        let error = |why| KernelError::Attach { interface: link.name.clone(), what: "native XDP", why };
        let Some(below) = &around.below else {
            let why =
                "it is no VLAN of one or two 802.1Q tags without priorities: set datapath.mode to auto or tc".into();
            return if native && role == Role::Uplink { Err((error(why), strict)) } else { Ok(None) };
        };
        if !native && tier(self.mode, below.lowest.kind, role) != Tier::Try {
            return Ok(None);
        }
        if let Some(why) = below.hidden() {
            return Err((error(format!("{why}; or set datapath.mode to auto or tc")), strict && native));
        }
        if self.xdp_on(below.lowest.index).is_none() {
            // Its untagged frames are nobody's business but those that are replies.
            match self.attach_xdp(ebpf, &below.lowest, Role::Cluster, "native", XdpMode::Driver) {
                Ok(hold) => {
                    let lowest = Lowest { xdp: ("native", hold), kind: below.lowest.kind };
                    self.lowest.insert(below.lowest.index, lowest);
                }
                Err(error) => return Err((error, strict && native)),
            }
        }
        Ok(Some(below.key()))
    }
}

fn attach_error(link: &Link, what: &'static str, error: &(dyn std::error::Error + 'static)) -> KernelError {
    if denied(error) {
        return KernelError::Permission { what: format!("attach {what} to {}", link.name) };
    }
    let name = &link.name;
    let why = match errno(error) {
        Some(libc::EBUSY | libc::EEXIST) => {
            format!(
                "another program is attached there: take it off (`ip link set dev {name} xdp off`) or set datapath.mode: tc"
            )
        }
        Some(libc::EOPNOTSUPP) if what == "native XDP" => {
            "its driver has no native XDP: set datapath.mode to auto, generic or tc".to_owned()
        }
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) if what == "native XDP" => format!(
            "its driver refuses ({error}); often its MTU of {} is too large for native XDP: lower it, or set datapath.mode to auto or tc",
            link.mtu
        ),
        _ => chain(error),
    };
    KernelError::Attach { interface: name.clone(), what, why }
}

/// An error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |e| e.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn missing(name: &str) -> ProgramError {
    // aya's own error for a wrong program name or type carries no name.
    ProgramError::IOError(std::io::Error::other(format!("the BPF object has no program {name} of that type")))
}

/// The XDP program of that name.
pub(super) fn xdp_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(p)) => Ok(p),
        _ => Err(missing(name)),
    }
}

/// The classifier of that name.
pub(super) fn tc_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(p)) => Ok(p),
        _ => Err(missing(name)),
    }
}

/// Puts a program into the link that is pinned at `path`, or attaches it and pins that link. The replacement is atomic.
fn pinned<L>(
    path: PathBuf,
    replace: impl FnOnce(L) -> Result<(), ProgramError>,
    attach: impl FnOnce(&Path) -> Result<L, ProgramError>,
) -> Result<Hold, ProgramError>
where
    L: TryFrom<FdLink, Error = LinkError>,
    FdLink: TryFrom<L, Error = LinkError>,
{
    if let Some(link) = Pins::open_link(&path).and_then(|link| L::try_from(link).ok()) {
        match replace(link) {
            Ok(()) => return Ok(Hold::Pinned { path, fresh: false }),
            // Its interface went, and the index came back with another one.
            Err(error) => tracing::debug!(pin = %path.display(), %error, "the pinned link is of no use"),
        }
    }
    if path.exists() {
        Pins::unlink(&path);
    }
    let link = FdLink::try_from(attach(&path)?).map_err(|_| {
        ProgramError::IOError(std::io::Error::other(
            "the kernel gives no link that can be pinned: leave datapath.pin out",
        ))
    })?;
    link.pin(&path).map_err(|e| ProgramError::IOError(std::io::Error::other(e)))?;
    Ok(Hold::Pinned { path, fresh: true })
}

impl Attacher {
    fn attach_xdp(
        &self,
        ebpf: &mut Ebpf,
        link: &Link,
        role: Role,
        name: &str,
        mode: XdpMode,
    ) -> Result<Hold, KernelError> {
        let what = if mode == XdpMode::Driver { "native XDP" } else { "generic XDP" };
        let attach = |program: &mut Xdp| {
            let id = program.attach_to_if_index(link.index, mode)?;
            program.take_link(id)
        };
        let program = xdp_program(ebpf, role.xdp()).map_err(|e| attach_error(link, what, &e))?;
        let hold = match &self.pins {
            None => attach(program).map(Hold::Xdp),
            Some(pins) => {
                let program = std::cell::RefCell::new(program);
                let replace = |old: XdpLink| {
                    let mut program = program.borrow_mut();
                    let id = program.attach_to_link(old)?;
                    program.take_link(id).map(drop)
                };
                pinned(pins.link(&format!("xdp-{name}"), link.index), replace, |path| {
                    pins.make_room(link.index, path);
                    attach(&mut program.borrow_mut())
                })
            }
        };
        hold.map_err(|e| attach_error(link, what, &e))
    }

    fn attach_tc(
        &self,
        ebpf: &mut Ebpf,
        link: &Link,
        name: &'static str,
        direction: TcAttachType,
    ) -> Result<Hold, KernelError> {
        let program = tc_program(ebpf, name).map_err(|e| attach_error(link, "TC", &e))?;
        if program.fd().is_err() {
            program.load().map_err(|e| KernelError::program(name, e))?;
        }
        let hold = match &self.pins {
            None => tc_link(program, link, direction).map(Hold::Tc),
            Some(pins) => {
                let program = std::cell::RefCell::new(program);
                let hook = if direction == TcAttachType::Egress { "tc-egress" } else { "tc-ingress" };
                let replace = |old: SchedClassifierLink| {
                    let mut program = program.borrow_mut();
                    let id = program.attach_to_link(old)?;
                    program.take_link(id).map(drop)
                };
                pinned(pins.link(hook, link.index), replace, |_| tc_link(&mut program.borrow_mut(), link, direction))
            }
        };
        hold.map_err(|e| attach_error(link, "TC", &e))
    }
}

fn tc_link(
    program: &mut SchedClassifier,
    link: &Link,
    direction: TcAttachType,
) -> Result<SchedClassifierLink, ProgramError> {
    let tcx = KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 6, 0));
    // Ours comes first: what the gateway does not take goes on to the CNI's programs.
    let options = if tcx {
        TcAttachOptions::TcxOrder(LinkOrder::first())
    } else {
        // The classic queueing discipline; it may be there already, and an empty one harms nobody.
        match tc::qdisc_add_clsact(&link.name) {
            Err(TcError::NetlinkError(e)) if errno(&e) != Some(libc::EEXIST) => {
                return Err(TcError::NetlinkError(e).into());
            }
            _ => TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() }),
        }
    };
    let id = program.attach_with_options(&link.name, direction, options)?;
    program.take_link(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_keeps_xdp_off_veth_bridges_and_overlays() {
        for kind in [Kind::Veth, Kind::Other] {
            for role in [Role::Uplink, Role::Cluster] {
                assert_eq!(tier(Mode::Auto, kind, role), Tier::None);
                assert_eq!(tier(Mode::Tc, kind, role), Tier::None);
            }
        }
        assert_eq!(tier(Mode::Auto, Kind::Nic, Role::Cluster), Tier::Try);
    }

    #[test]
    fn native_is_an_error_on_an_uplink_without_it_but_not_on_an_overlay() {
        assert_eq!(tier(Mode::Native, Kind::Other, Role::Uplink), Tier::Native);
        assert_eq!(tier(Mode::Native, Kind::Other, Role::Cluster), Tier::None);
        assert_eq!(tier(Mode::Native, Kind::Veth, Role::Cluster), Tier::Native);
        assert_eq!(tier(Mode::Generic, Kind::Veth, Role::Uplink), Tier::Generic);
    }
}
