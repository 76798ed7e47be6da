BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE checkpoints (
	id VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	name VARCHAR, 
	group_checkpoint VARCHAR, 
	body TEXT NOT NULL, 
	domain_xml TEXT NOT NULL, 
	group_name VARCHAR, 
	PRIMARY KEY (id), 
	UNIQUE (host, vm_uuid, name)
);
INSERT INTO "checkpoints" VALUES('11111111111111111111111111111111','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','before','dddddddddddddddddddddddddddddddd','{"id": "11111111111111111111111111111111", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "name": "before", "created": "2026-01-01T00:00:00.000+00:00", "kind": "production", "consistency": "application", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/db1.qcow2", "format": "qcow2"}], "off": false, "hidden": false, "excluded": ["vdb"], "files": [{"role": "nvram", "path": "/images/db1.nvram"}, {"role": "tpm", "path": "/images/db1.tpm"}], "stall_us": 61000, "writers": [{"id": "postgresql:17/main", "application": "postgresql", "version": "17.2", "level": "back-end", "grade": "nil-redo", "reason": "gr\u00f6\u00dfer als \u4e2d", "role": "primary", "position": {"redo_lsn": "0/3000028"}, "data_directory": "/var/lib/postgresql/17/main", "warnings": ["be careful"], "timings_us": {"lock": 5}, "required": false, "outcome": "retryable", "stateless": true, "last_error": "hold: timeout"}], "filesystems": [{"mountpoint": "/", "fstype": "ext4", "source": "/dev/vda1", "state": "thawed", "freeze_us": 12}, {"mountpoint": "/boot/efi", "fstype": "vfat", "source": "/dev/vda2", "state": "flushed", "reason": "vfat cannot be frozen"}], "phases_us": {"hold back-end": 8}, "guest_clock_ns": {"held": 4611686018427387904}, "warnings": ["my\u00a0vm\u200b"], "group": {"id": "dddddddddddddddddddddddddddddddd", "group": "shop", "name": "before", "members": ["11111111111111111111111111111111", "55555555555555555555555555555555"], "skew_us": 321, "witnesses": [{"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "30000000-0000-4000-8000-000000000000", "vm_name": "lone", "writers": [{"id": "postgresql:17/main", "application": "postgresql", "version": "17.2", "level": "back-end", "grade": "nil-redo", "reason": "gr\u00f6\u00dfer als \u4e2d", "role": "primary", "position": {"redo_lsn": "0/3000028"}, "data_directory": "/var/lib/postgresql/17/main", "warnings": ["be careful"], "timings_us": {"lock": 5}, "required": false, "outcome": "retryable", "stateless": true, "last_error": "hold: timeout"}]}, {"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "gone", "vm_name": "away", "writers": [], "reason": "it is off"}]}, "changed": []}','<domain><name>größer als 中</name></domain>','shop');
INSERT INTO "checkpoints" VALUES('55555555555555555555555555555555','8f7e6d5c4b3a29180716253443526170','20000000-0000-4000-8000-000000000000','before','dddddddddddddddddddddddddddddddd','{"id": "55555555555555555555555555555555", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "20000000-0000-4000-8000-000000000000", "vm_name": "web1", "name": "before", "created": "2026-01-05T00:00:00.000+00:00", "kind": "production", "consistency": "application", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/web1.qcow2", "format": "qcow2"}], "off": false, "hidden": false, "excluded": [], "files": [], "stall_us": 0, "writers": [], "filesystems": [], "phases_us": {}, "guest_clock_ns": {}, "warnings": [], "group": {"id": "dddddddddddddddddddddddddddddddd", "group": "shop", "name": "before", "members": ["11111111111111111111111111111111", "55555555555555555555555555555555"], "skew_us": 321, "witnesses": [{"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "30000000-0000-4000-8000-000000000000", "vm_name": "lone", "writers": [{"id": "postgresql:17/main", "application": "postgresql", "version": "17.2", "level": "back-end", "grade": "nil-redo", "reason": "gr\u00f6\u00dfer als \u4e2d", "role": "primary", "position": {"redo_lsn": "0/3000028"}, "data_directory": "/var/lib/postgresql/17/main", "warnings": ["be careful"], "timings_us": {"lock": 5}, "required": false, "outcome": "retryable", "stateless": true, "last_error": "hold: timeout"}]}, {"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "gone", "vm_name": "away", "writers": [], "reason": "it is off"}]}, "changed": []}','<domain/>','shop');
INSERT INTO "checkpoints" VALUES('22222222222222222222222222222222','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','with memory',NULL,'{"id": "22222222222222222222222222222222", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "name": "with memory", "created": "2026-01-02T00:00:00.000+00:00", "kind": "standard", "consistency": "crash", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/db1.2.qcow2", "format": "qcow2"}], "parent": "11111111111111111111111111111111", "off": false, "hidden": false, "excluded": [], "files": [{"role": "memory", "path": "/images/db1.memory"}], "stall_us": 0, "writers": [], "filesystems": [], "phases_us": {}, "guest_clock_ns": {}, "warnings": [], "changed": []}','<domain/>',NULL);
INSERT INTO "checkpoints" VALUES('33333333333333333333333333333333','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000',NULL,NULL,'{"id": "33333333333333333333333333333333", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "name": "with memory", "created": "2026-01-03T00:00:00.000+00:00", "kind": "automatic", "consistency": "application", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/db1.3.qcow2", "format": "qcow2"}], "parent": "11111111111111111111111111111111", "off": false, "hidden": true, "excluded": [], "files": [], "stall_us": 0, "writers": [], "filesystems": [], "phases_us": {}, "guest_clock_ns": {}, "warnings": [], "changed": []}','<domain/>',NULL);
INSERT INTO "checkpoints" VALUES('44444444444444444444444444444444','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','safety',NULL,'{"id": "44444444444444444444444444444444", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "name": "safety", "created": "2026-01-04T00:00:00.000+00:00", "kind": "safety", "consistency": "application", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/db1.4.qcow2", "format": "qcow2"}], "parent": "33333333333333333333333333333333", "off": true, "hidden": false, "excluded": [], "files": [], "stall_us": 0, "writers": [], "filesystems": [], "phases_us": {}, "guest_clock_ns": {}, "warnings": [], "changed": []}','<domain/>',NULL);
CREATE TABLE files (
	host VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	checkpoint VARCHAR NOT NULL, 
	PRIMARY KEY (host, path, checkpoint)
);
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.nvram','11111111111111111111111111111111');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.qcow2','11111111111111111111111111111111');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.tpm','11111111111111111111111111111111');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/web1.qcow2','55555555555555555555555555555555');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.2.qcow2','22222222222222222222222222222222');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.memory','22222222222222222222222222222222');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.3.qcow2','33333333333333333333333333333333');
INSERT INTO "files" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.4.qcow2','44444444444444444444444444444444');
CREATE TABLE fingerprints (
	host VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (host, vm_uuid, path)
);
INSERT INTO "fingerprints" VALUES('8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','/images/db1.2.qcow2','{"size": 196608, "written": "1767225601", "header": "qcow2 1073741824 db1.qcow2"}');
INSERT INTO "fingerprints" VALUES('8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','/images/db1.qcow2','{"size": 393216, "written": "1767225600.123456789", "header": "qcow2 1073741824"}');
CREATE TABLE groups (
	name VARCHAR NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "groups" VALUES('shop','{"name": "shop", "members": [{"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "20000000-0000-4000-8000-000000000000", "vm_name": "web1", "tier": "front"}, {"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "elsewhere", "vm_name": "app", "tier": "middle"}, {"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "tier": "back"}, {"host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "30000000-0000-4000-8000-000000000000", "vm_name": "lone", "tier": "external"}], "groups": ["more"]}');
INSERT INTO "groups" VALUES('more','{"name": "more", "members": [], "groups": []}');
CREATE TABLE heads (
	host VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	parent VARCHAR, 
	untouched TEXT, 
	PRIMARY KEY (host, vm_uuid)
);
INSERT INTO "heads" VALUES('8f7e6d5c4b3a29180716253443526170','20000000-0000-4000-8000-000000000000','55555555555555555555555555555555','{"written": {"/images/web1.now.qcow2": "1767225601.5"}}');
INSERT INTO "heads" VALUES('8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','44444444444444444444444444444444','{"written": {"/images/db1.live.qcow2": "1767225600.123456789"}, "worth": "filesystem"}');
CREATE TABLE hosts (
	id VARCHAR NOT NULL, 
	uuid VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "hosts" VALUES('8f7e6d5c4b3a29180716253443526170','11111111-2222-3333-4444-555555555555','kvm1.example.org');
CREATE TABLE images (
	host VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	merged BOOLEAN NOT NULL, 
	live BOOLEAN NOT NULL, 
	PRIMARY KEY (host, path)
);
INSERT INTO "images" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.merged.qcow2','10000000-0000-4000-8000-000000000000',1,0);
INSERT INTO "images" VALUES('8f7e6d5c4b3a29180716253443526170','/images/db1.live.qcow2','10000000-0000-4000-8000-000000000000',0,1);
INSERT INTO "images" VALUES('8f7e6d5c4b3a29180716253443526170','/images/web1.left.qcow2','20000000-0000-4000-8000-000000000000',0,0);
CREATE TABLE operations (
	id VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	verb VARCHAR NOT NULL, 
	started VARCHAR NOT NULL, 
	finished VARCHAR, 
	outcome VARCHAR, 
	PRIMARY KEY (id)
);
INSERT INTO "operations" VALUES('ffffffffffffffffffffffffffffffff','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','rename','2026-01-01T00:00:00+00:00','2026-01-01T00:00:00+00:00','done');
INSERT INTO "operations" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','restore','2026-01-01T00:00:00+00:00',NULL,NULL);
INSERT INTO "operations" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','8f7e6d5c4b3a29180716253443526170','30000000-0000-4000-8000-000000000000','import','2026-01-01T00:00:00+00:00',NULL,NULL);
CREATE TABLE settings (
	host VARCHAR NOT NULL, 
	vm_uuid VARCHAR NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (host, vm_uuid)
);
INSERT INTO "settings" VALUES('8f7e6d5c4b3a29180716253443526170','10000000-0000-4000-8000-000000000000','{"type": "standard", "require": "crash", "automatic": true, "exclude": ["vdb", "vdc"], "require_grade": "stands-still"}');
CREATE TABLE steps (
	operation VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	what VARCHAR NOT NULL, 
	details TEXT NOT NULL, 
	done BOOLEAN NOT NULL, 
	PRIMARY KEY (operation, number), 
	FOREIGN KEY(operation) REFERENCES operations (id)
);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',0,'MakeOverlay','{"target": "vda", "path": "/images/new.qcow2", "backing": "/images/db1.qcow2"}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,'WriteFile','{"path": "/images/new.nvram"}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',2,'RemoveFile','{"path": "/images/old.qcow2"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',3,'Switch','{"overlays": {"vda": "/images/new.qcow2"}}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',4,'Switch','{"overlays": {"vda": "/images/new.qcow2"}, "memory": "/images/new.memory"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',5,'Record','{"checkpoint": "11111111111111111111111111111111", "earlier": []}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',6,'Stop','{}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',7,'PutBack','{"checkpoint": "11111111111111111111111111111111", "sources": {"vda": "/images/db1.live.qcow2"}, "before": "<before/>", "untouched": {"written": {"/images/db1.live.qcow2": "1767225600.123456789"}, "worth": "filesystem"}, "safety": {"id": "44444444444444444444444444444444", "host": "8f7e6d5c4b3a29180716253443526170", "vm_uuid": "10000000-0000-4000-8000-000000000000", "vm_name": "db1", "name": "safety", "created": "2026-01-04T00:00:00.000+00:00", "kind": "safety", "consistency": "application", "required": "filesystem", "disks": [{"target": "vda", "path": "/images/db1.4.qcow2", "format": "qcow2"}], "parent": "33333333333333333333333333333333", "off": true, "hidden": false, "excluded": [], "files": [], "stall_us": 0, "writers": [], "filesystems": [], "phases_us": {}, "guest_clock_ns": {}, "warnings": [], "changed": []}, "tpm": "/images/db1.tpm"}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',8,'PutBack','{"checkpoint": "11111111111111111111111111111111", "sources": {"vda": "/images/db1.live.qcow2"}, "before": "<before/>", "untouched": {"written": {"/images/web1.now.qcow2": "1767225601.5"}}}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',9,'Hide','{"checkpoints": ["11111111111111111111111111111111", "22222222222222222222222222222222"]}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',10,'Rename','{"checkpoint": "11111111111111111111111111111111"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',11,'Merge','{"top": "/t", "base": "/b", "target": "vda", "branches": ["/x", "/y"], "checkpoints": ["33333333333333333333333333333333", "44444444444444444444444444444444"], "checkpoint": "44444444444444444444444444444444"}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',12,'Merge','{"top": "/t", "base": "/b", "target": "vda", "branches": [], "checkpoints": []}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',13,'MoveBranch','{"image": "/i", "top": "/t", "base": "/b"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',14,'Forget','{"checkpoint": "33333333333333333333333333333333", "children": ["44444444444444444444444444444444"]}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',15,'WriteExport','{"directory": "/export", "files": ["disk.qcow2", "domain.xml"]}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',16,'CopyDisk','{"target": "vda"}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',17,'CopyIn','{"path": "/images/in.qcow2"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',18,'Define','{}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',19,'RestoreGroup','{"reference": "shop@before"}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',20,'Record','{"checkpoint": "11111111111111111111111111111111", "earlier": ["33333333333333333333333333333333"]}',1);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',21,'Relabel','{"checkpoints": ["11111111111111111111111111111111", "44444444444444444444444444444444"]}',0);
INSERT INTO "steps" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',22,'MakePlace','{"path": "/images/new"}',1);
CREATE INDEX ix_checkpoints_group_name ON checkpoints (group_name);
CREATE INDEX ix_checkpoints_group_checkpoint ON checkpoints (group_checkpoint);
CREATE INDEX ix_files_checkpoint ON files (checkpoint);
CREATE INDEX ix_images_vm ON images (host, vm_uuid);
CREATE INDEX ix_operations_unfinished ON operations (host, finished, vm_uuid);
CREATE INDEX ix_operations_vm ON operations (host, vm_uuid);
COMMIT;
