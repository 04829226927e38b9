//! Tests of `tuning/isolate` on simulated machines: directories with the files of /proc and /sys.

use crate::harness::{in_repository, skipped};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn script() -> PathBuf {
    in_repository("tuning/isolate")
}

/// A directory with the parts of /proc and /sys that the script reads and writes.
struct Machine(tempfile::TempDir);

impl Machine {
    /// Creates a machine with 40 CPUs, the interrupts of a keyboard and of a disk, and irqbalance. The disk's interrupt
    /// cannot be moved.
    fn new() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.write("sys/devices/system/cpu/online", "0-39");
        for path in ["cpumask", "writeback/cpumask"] {
            machine.write(&format!("sys/devices/virtual/workqueue/{path}"), "ff,ffffffff");
        }
        machine.write("proc/irq/default_smp_affinity", "ff,ffffffff");
        machine.write("proc/irq/1/smp_affinity_list", "0-39");
        machine.write("proc/irq/2/smp_affinity_list/refused", "");
        machine.write("usr/sbin/irqbalance", "");
        machine
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// Adds a network card with `queues` queues and these interrupts, numbered from 20. The interrupts belong to the
    /// device, or to its parent if the device is virtual.
    fn with_card(self, name: &str, queues: usize, interrupts: &[&str], is_virtual: bool) -> Machine {
        for queue in 0..queues {
            self.write(&format!("sys/class/net/{name}/queues/rx-{queue}/rps_cpus"), "7");
            self.write(&format!("sys/class/net/{name}/queues/tx-{queue}/xps_cpus"), "7");
        }
        for (irq, interrupt) in (20..).zip(interrupts) {
            self.write(&format!("sys/kernel/irq/{irq}/actions"), interrupt);
            self.write(&format!("proc/irq/{irq}/smp_affinity_list"), "0-39");
            self.write(&format!("sys/devices/pci/msi_irqs/{irq}"), "msi");
        }
        let device = self.path().join(if is_virtual { "sys/devices/pci/virtio0" } else { "sys/devices/pci" });
        fs::create_dir_all(&device).unwrap();
        symlink(device, self.path().join(format!("sys/class/net/{name}/device"))).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(script()).args(["--root"]).arg(self.path()).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.success(), text.replace(self.path().to_str().unwrap(), ""))
    }

    /// Returns the path and the text of every file.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    let name = entry.path().strip_prefix(self.path()).unwrap().to_str().unwrap().to_owned();
                    files.insert(format!("/{name}"), fs::read_to_string(entry.path()).unwrap());
                }
            }
        }
        files
    }

    /// Runs the script as a dry run, then with changes, and checks that it makes exactly `writes`, each a value and a
    /// path. Returns the output of the second run.
    fn expect(&self, cpus: &str, interface: &str, writes: &[(&str, &str)]) -> String {
        let before = self.files();
        let (is_done, said) = self.run(&["--dry-run", cpus, interface]);
        assert!(is_done, "{said}");
        let lines: Vec<_> = said.lines().filter_map(|line| line.split_once(" > ")).collect();
        // The dry run also lists the interrupt that cannot be moved, because only a write shows that.
        let tried: Vec<_> = lines.into_iter().filter(|(_, path)| *path != "/proc/irq/2/smp_affinity_list").collect();
        assert_eq!(tried, writes);
        assert_eq!(self.files(), before, "the dry run has changed a file");

        let (is_done, said) = self.run(&[cpus, interface]);
        assert!(is_done && said.contains("these interrupts stay where the kernel has them: 2\n"), "{said}");
        let mut after = before;
        for (value, path) in writes {
            after.insert((*path).to_owned(), format!("{}\n", value.replace("\\n", "\n")));
        }
        assert_eq!(self.files(), after);
        said
    }
}

#[test]
fn each_queue_interrupts_the_cpu_of_its_shard() {
    let interrupts = ["eth0", "eth0-TxRx-0", "eth0-TxRx-1"];
    let machine = Machine::new().with_card("eth0", 2, &interrupts, false);
    let others = (0..40).filter(|cpu| ![3, 33].contains(cpu)).map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",");
    let said = machine.expect(
        "3,33",
        "eth0",
        &[
            ("3", "/proc/irq/21/smp_affinity_list"),
            ("33", "/proc/irq/22/smp_affinity_list"),
            ("0", "/sys/class/net/eth0/queues/rx-0/rps_cpus"),
            ("0", "/sys/class/net/eth0/queues/rx-1/rps_cpus"),
            ("00000008", "/sys/class/net/eth0/queues/tx-0/xps_cpus"),
            ("00000002,00000000", "/sys/class/net/eth0/queues/tx-1/xps_cpus"),
            (&others, "/proc/irq/1/smp_affinity_list"),
            (&others, "/proc/irq/20/smp_affinity_list"),
            ("000000fd,fffffff7", "/proc/irq/default_smp_affinity"),
            ("000000fd,fffffff7", "/sys/devices/virtual/workqueue/cpumask"),
            ("000000fd,fffffff7", "/sys/devices/virtual/workqueue/writeback/cpumask"),
            (
                "[Service]\\nEnvironment=IRQBALANCE_BANNED_CPULIST=3,33 \"IRQBALANCE_ARGS=--banirq=21 --banirq=22\"",
                "/run/systemd/system/irqbalance.service.d/stampede.conf",
            ),
        ],
    );
    let line = format!("isolcpus=domain,3,33 nohz_full=3,33 rcu_nocbs=3,33 irqaffinity={others}\n");
    assert!(said.contains(&line), "{said}");
}

#[test]
fn with_one_queue_the_kernel_hands_packets_on() {
    let interrupts = ["virtio0-config", "virtio0-input.0", "virtio0-output.0"];
    let machine = Machine::new().with_card("eth0", 1, &interrupts, true);
    machine.expect(
        "1-39",
        "eth0",
        &[
            ("000000ff,fffffffe", "/sys/class/net/eth0/queues/rx-0/rps_cpus"),
            ("0", "/proc/irq/1/smp_affinity_list"),
            ("0", "/proc/irq/20/smp_affinity_list"),
            ("0", "/proc/irq/21/smp_affinity_list"),
            ("0", "/proc/irq/22/smp_affinity_list"),
            ("00000001", "/proc/irq/default_smp_affinity"),
            ("00000001", "/sys/devices/virtual/workqueue/cpumask"),
            ("00000001", "/sys/devices/virtual/workqueue/writeback/cpumask"),
            (
                "[Service]\\nEnvironment=IRQBALANCE_BANNED_CPULIST=1-39 \"IRQBALANCE_ARGS=\"",
                "/run/systemd/system/irqbalance.service.d/stampede.conf",
            ),
        ],
    );
}

/// Returns the values that a dry run would write to paths that contain `part`.
fn values(machine: &Machine, cpus: &str, part: &str) -> Vec<String> {
    let (is_done, said) = machine.run(&["--dry-run", cpus, "eth0"]);
    assert!(is_done, "{said}");
    let lines = said.lines().filter_map(|line| line.split_once(" > "));
    lines.filter(|(_, path)| path.contains(part)).map(|(value, _)| value.to_owned()).collect()
}

#[test]
fn queues_are_told_by_their_names_and_go_round() {
    // More queues than shards, except in the first check, and one interrupt that belongs to no queue.
    let at = "@pci:0000:01:00.0";
    let interrupts = ["mlx5_async0", "mlx5_comp0", "mlx5_comp1", "mlx5_comp2"].map(|name| format!("{name}{at}"));
    let interrupts = interrupts.each_ref().map(String::as_str);
    let machine = Machine::new().with_card("eth0", 3, &interrupts, false);
    assert_eq!(values(&machine, "0-37", "/irq/2"), ["38,39"; 5], "the other CPUs handle the interrupts");
    assert_eq!(values(&machine, "5-6", "/irq/20/")[0].split(',').count(), 38, "the interrupt belongs to no queue");
    assert_eq!(values(&machine, "5-6", "/irq/21/"), ["5"]);
    assert_eq!(values(&machine, "5-6", "/irq/22/"), ["6"]);
    assert_eq!(values(&machine, "5-6", "/irq/23/"), ["5"]);
    assert_eq!(values(&machine, "5-6", "xps_cpus"), ["00000020", "00000040", "00000020"]);
    // Each queue has a receiving and a sending interrupt. With fewer queues than shards, a queue serves several shards.
    let interrupts = ["config", "input.0", "output.0", "input.1", "output.1"].map(|name| format!("virtio0-{name}"));
    let interrupts = interrupts.each_ref().map(String::as_str);
    let machine = Machine::new().with_card("eth0", 2, &interrupts, true);
    assert_eq!(values(&machine, "8,9", "/irq/21/"), ["8"]);
    assert_eq!(values(&machine, "8,9", "/irq/22/"), ["8"]);
    assert_eq!(values(&machine, "8,9", "/irq/24/"), ["9"]);
    assert_eq!(values(&machine, "4-7", "xps_cpus"), ["00000050", "000000a0"]);
    assert_eq!(values(&machine, "4-7", "rps_cpus"), ["000000f0", "000000f0"]);
}

/// A single interrupt with the name of the card belongs to no queue.
#[test]
fn a_card_without_queues_is_shared_out_even_to_one_shard() {
    let machine = Machine::new().with_card("eth0", 1, &["eth0"], false);
    assert_eq!(values(&machine, "39", "/irq/20/")[0].split(',').count(), 39);
    assert_eq!(values(&machine, "39", "rps_cpus"), ["00000080,00000000"]);
}

#[test]
fn errors_name_what_is_missing_and_the_remedy() {
    let machine = Machine::new().with_card("eth0", 1, &["eth0"], false);
    machine.write("sys/class/net/lo/queues/rx-0/rps_cpus", "0");
    let before = machine.files();
    for (arguments, parts) in [
        (&["1-2", "eth1"][..], ["no interface eth1", "there are: eth0 lo"]),
        (&["1-2", "lo"], ["lo is no card", "the one beneath it"]),
        (&["1,40", "eth0"], ["no CPU 40", "this machine has 0-39"]),
        (&["0-39", "eth0"], ["all that there is", "leave at least one CPU"]),
        (&["7-1", "eth0"], ["names no CPU", "like 1-7"]),
        (&["few", "eth0"], ["no list of CPUs", "like 1-7"]),
        (&["1-2"], ["and the network interface", "isolate 1-7 eth0"]),
        (&["--now", "1-2", "eth0"], ["--now is not known", "--help"]),
        (&["--root", "/nowhere", "1-2", "eth0"], ["--root", "a directory"]),
    ] {
        let (is_done, said) = machine.run(arguments);
        assert!(!is_done && parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
    fs::remove_dir_all(machine.path().join("sys/devices/virtual")).unwrap();
    let (is_done, said) = machine.run(&["1-2", "eth0"]);
    assert!(!is_done && said.contains("/sys/devices/virtual/workqueue/cpumask does not take"), "{said}");
    machine.write("sys/devices/virtual/workqueue/cpumask", "ff,ffffffff");
    machine.write("sys/devices/virtual/workqueue/writeback/cpumask", "ff,ffffffff");
    assert_ne!(machine.files(), before, "the writes before the failed one are done");
    let (is_done, said) = machine.run(&["--help"]);
    assert!(is_done && said.starts_with("Usage: isolate"), "{said}");
}

#[test]
fn only_root_may_change_the_machine() {
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("bash");
        // This user may have no access to the script's directory, so that bash reads the script from standard input.
        command.args(["-s", "--"]).args(arguments).stdin(File::open(script()).unwrap()).uid(65534).gid(65534);
        command.output()
    };
    let Ok(output) = nobody(&["1", "there-is-no-such-card"]) else {
        return skipped("isolate as an ordinary user", "only root can become one");
    };
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("only root may do this: use sudo"), "{said}");
}
