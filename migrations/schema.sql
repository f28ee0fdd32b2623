--
-- PostgreSQL database dump
--



SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: next_stamp_event_offset(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.next_stamp_event_offset() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    taken bigint;
BEGIN
    UPDATE stamp_log SET next_offset = next_offset + 1 WHERE only_row RETURNING next_offset - 1 INTO taken;
    PERFORM pg_notify('stamp_events', '0');
    RETURN taken;
END
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: blob_chunks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.blob_chunks (
    upload_id uuid NOT NULL,
    "position" integer NOT NULL,
    content bytea NOT NULL,
    created_at timestamp with time zone NOT NULL
);


--
-- Name: TABLE blob_chunks; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.blob_chunks IS 'Owned by the store node: the bytes of streamed blobs, and of uploads that did not end.';


--
-- Name: blob_references; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.blob_references (
    digest bytea NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: TABLE blob_references; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.blob_references IS 'Owned by the store node: which key refers to which blob.';


--
-- Name: blobs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.blobs (
    digest bytea NOT NULL,
    size_bytes bigint NOT NULL,
    content bytea,
    upload_id uuid,
    created_at timestamp with time zone NOT NULL,
    released boolean,
    CONSTRAINT blobs_content_check CHECK (((content IS NULL) <> (upload_id IS NULL))),
    CONSTRAINT blobs_digest_check CHECK ((octet_length(digest) = 32))
);


--
-- Name: TABLE blobs; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.blobs IS 'Owned by the store node: bytes by digest; large ones have their bytes in blob_chunks.';


--
-- Name: lease_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.lease_events (
    event_offset bigint NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    CONSTRAINT lease_events_kind_check CHECK ((kind = ANY (ARRAY['acquired'::text, 'released'::text, 'expired'::text])))
);


--
-- Name: TABLE lease_events; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.lease_events IS 'Owned by the store node: what happened to leases, for those who watch.';


--
-- Name: lease_log; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.lease_log (
    only_row boolean DEFAULT true NOT NULL,
    next_offset bigint DEFAULT 0 NOT NULL,
    first_offset bigint DEFAULT 0 NOT NULL,
    CONSTRAINT lease_log_only_row_check CHECK (only_row)
)
WITH (fillfactor='10');


--
-- Name: TABLE lease_log; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.lease_log IS 'Owned by the store node: the numbers of the lease events.';


--
-- Name: leases; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.leases (
    name text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    end_noted boolean DEFAULT false NOT NULL,
    renewed boolean DEFAULT false NOT NULL,
    CONSTRAINT leases_epoch_check CHECK ((epoch >= 1))
)
WITH (fillfactor='50');


--
-- Name: TABLE leases; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.leases IS 'Owned by the store node: who holds what, until when.';


--
-- Name: outbox_consumers; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_consumers (
    consumer text NOT NULL COLLATE pg_catalog."C",
    partition smallint NOT NULL,
    next_offset bigint NOT NULL,
    registered_at timestamp with time zone NOT NULL,
    acknowledged_at timestamp with time zone,
    CONSTRAINT outbox_consumers_next_offset_check CHECK ((next_offset >= 0))
)
WITH (fillfactor='50');


--
-- Name: TABLE outbox_consumers; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox_consumers IS 'Owned by the store node: what each consumer of the outbox has acknowledged.';


--
-- Name: projection_watermarks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.projection_watermarks (
    partition smallint NOT NULL,
    watermark bigint DEFAULT 0 NOT NULL,
    generation integer DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    CONSTRAINT projection_watermarks_watermark_check CHECK ((watermark >= 0))
)
WITH (fillfactor='10');


--
-- Name: TABLE projection_watermarks; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.projection_watermarks IS 'Owned by the store node: how far each partition of the log is projected.';


--
-- Name: schema_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.schema_migrations (
    version_num character varying(32) NOT NULL
);


--
-- Name: stamp_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamp_events (
    event_id bigint NOT NULL,
    namespace text NOT NULL,
    stamp_id uuid,
    kind text NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    event_offset bigint DEFAULT public.next_stamp_event_offset() NOT NULL,
    reason text,
    stamped_count integer,
    refused_count integer,
    CONSTRAINT stamp_events_kind_check CHECK ((kind = ANY (ARRAY['created'::text, 'revoked'::text, 'validated'::text, 'batch_processed'::text]))),
    CONSTRAINT stamp_events_stamp_check CHECK (((stamp_id IS NULL) = (kind = 'batch_processed'::text)))
);


--
-- Name: TABLE stamp_events; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamp_events IS 'Owned by the stamping node: what happened to stamps, for those who watch.';


--
-- Name: stamp_events_event_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.stamp_events ALTER COLUMN event_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.stamp_events_event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: stamp_log; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamp_log (
    only_row boolean DEFAULT true NOT NULL,
    next_offset bigint DEFAULT 0 NOT NULL,
    first_offset bigint DEFAULT 0 NOT NULL,
    CONSTRAINT stamp_log_only_row_check CHECK (only_row)
)
WITH (fillfactor='10');


--
-- Name: TABLE stamp_log; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamp_log IS 'Owned by the stamping node: the numbers of the stamps'' events.';


--
-- Name: stamp_requests; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamp_requests (
    namespace text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea,
    stamp_id uuid,
    created boolean NOT NULL,
    released_at timestamp with time zone,
    CONSTRAINT stamp_requests_tombstone_check CHECK ((((stamp_id IS NULL) = (fingerprint IS NULL)) AND ((stamp_id IS NOT NULL) OR (released_at IS NOT NULL))))
);


--
-- Name: TABLE stamp_requests; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamp_requests IS 'Owned by the stamping node: what each request_id asked for and was answered.';


--
-- Name: stamp_revocations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamp_revocations (
    namespace text NOT NULL,
    request_id text NOT NULL,
    creation_request_id text NOT NULL,
    reason text NOT NULL,
    revoked boolean NOT NULL,
    remaining_claims bigint NOT NULL
);


--
-- Name: TABLE stamp_revocations; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamp_revocations IS 'Owned by the stamping node: what each revocation asked for and was answered.';


--
-- Name: stamps; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamps (
    namespace text NOT NULL,
    stamp_id uuid NOT NULL,
    digest bytea NOT NULL,
    version integer NOT NULL,
    op_id uuid NOT NULL,
    content_type text NOT NULL,
    size_bytes bigint NOT NULL,
    file_path text NOT NULL,
    intelligence_data jsonb NOT NULL,
    created_at timestamp with time zone NOT NULL,
    revoked_at timestamp with time zone,
    CONSTRAINT stamps_digest_check CHECK ((octet_length(digest) = 32)),
    CONSTRAINT stamps_size_bytes_check CHECK ((size_bytes >= 0)),
    CONSTRAINT stamps_version_check CHECK ((version >= 1))
);


--
-- Name: TABLE stamps; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamps IS 'Owned by the stamping node: every stamp ever made, revoked ones too.';


--
-- Name: store_partitions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.store_partitions (
    partition smallint NOT NULL,
    next_offset bigint DEFAULT 0 NOT NULL,
    first_offset bigint DEFAULT 0 NOT NULL,
    first_event_offset bigint DEFAULT 0 NOT NULL,
    CONSTRAINT store_partitions_next_offset_check CHECK ((next_offset >= 0))
)
WITH (fillfactor='10');


--
-- Name: TABLE store_partitions; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.store_partitions IS 'Owned by the store node: a row for each partition, with the offset of its next commit.';


--
-- Name: workflow_commits; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.workflow_commits (
    partition smallint NOT NULL,
    commit_offset bigint NOT NULL,
    action_index smallint NOT NULL,
    action_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    action_type text NOT NULL,
    provenance text NOT NULL,
    events text,
    key text COLLATE pg_catalog."C",
    version bigint NOT NULL,
    state text,
    schema_version integer,
    final boolean,
    committed_at timestamp with time zone NOT NULL,
    transient boolean,
    CONSTRAINT workflow_commits_fingerprint_check CHECK ((octet_length(fingerprint) = 32))
);


--
-- Name: TABLE workflow_commits; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.workflow_commits IS 'Owned by the store node: a row for each committed action; log, dedup and outbox at once. What belongs to the commit as a whole stands in its first row. Appended events have no key.';


--
-- Name: workflow_projection; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.workflow_projection (
    generation integer NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    partition smallint NOT NULL,
    version bigint NOT NULL,
    tag text NOT NULL,
    last_action text NOT NULL,
    namespace text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    final boolean NOT NULL,
    indices jsonb NOT NULL,
    extras text NOT NULL,
    CONSTRAINT workflow_projection_version_check CHECK ((version >= 1))
);


--
-- Name: TABLE workflow_projection; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.workflow_projection IS 'Owned by the store node: what is shown of every key, made from its state.';


--
-- Name: workflow_state; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.workflow_state (
    key text NOT NULL COLLATE pg_catalog."C",
    partition smallint NOT NULL,
    version bigint NOT NULL,
    state text NOT NULL,
    schema_version integer NOT NULL,
    final boolean NOT NULL,
    projection text,
    last_action text NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone GENERATED ALWAYS AS (
CASE
    WHEN final THEN updated_at
    ELSE NULL::timestamp with time zone
END) STORED,
    forgotten boolean DEFAULT false NOT NULL,
    CONSTRAINT workflow_state_version_check CHECK ((version >= 1))
)
WITH (fillfactor='70');


--
-- Name: TABLE workflow_state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.workflow_state IS 'Owned by the store node: the current state of every key.';


--
-- Name: blob_chunks blob_chunks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.blob_chunks
    ADD CONSTRAINT blob_chunks_pkey PRIMARY KEY (upload_id, "position");


--
-- Name: blob_references blob_references_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.blob_references
    ADD CONSTRAINT blob_references_pkey PRIMARY KEY (digest, key);


--
-- Name: blobs blobs_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.blobs
    ADD CONSTRAINT blobs_pkey PRIMARY KEY (digest);


--
-- Name: lease_events lease_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.lease_events
    ADD CONSTRAINT lease_events_pkey PRIMARY KEY (event_offset);


--
-- Name: lease_log lease_log_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.lease_log
    ADD CONSTRAINT lease_log_pkey PRIMARY KEY (only_row);


--
-- Name: leases leases_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);


--
-- Name: outbox_consumers outbox_consumers_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_consumers
    ADD CONSTRAINT outbox_consumers_pkey PRIMARY KEY (consumer, partition);


--
-- Name: projection_watermarks projection_watermarks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projection_watermarks
    ADD CONSTRAINT projection_watermarks_pkey PRIMARY KEY (partition);


--
-- Name: schema_migrations schema_migrations_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkc PRIMARY KEY (version_num);


--
-- Name: stamp_events stamp_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_events
    ADD CONSTRAINT stamp_events_pkey PRIMARY KEY (event_offset);


--
-- Name: stamp_log stamp_log_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_log
    ADD CONSTRAINT stamp_log_pkey PRIMARY KEY (only_row);


--
-- Name: stamp_requests stamp_requests_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_requests
    ADD CONSTRAINT stamp_requests_pkey PRIMARY KEY (namespace, request_id);


--
-- Name: stamp_revocations stamp_revocations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_revocations
    ADD CONSTRAINT stamp_revocations_pkey PRIMARY KEY (namespace, request_id);


--
-- Name: stamps stamps_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamps
    ADD CONSTRAINT stamps_pkey PRIMARY KEY (namespace, stamp_id);


--
-- Name: stamps stamps_version_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamps
    ADD CONSTRAINT stamps_version_key UNIQUE (digest, namespace, version);


--
-- Name: store_partitions store_partitions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.store_partitions
    ADD CONSTRAINT store_partitions_pkey PRIMARY KEY (partition);


--
-- Name: workflow_commits workflow_commits_action_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workflow_commits
    ADD CONSTRAINT workflow_commits_action_key UNIQUE (action_id);


--
-- Name: workflow_commits workflow_commits_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workflow_commits
    ADD CONSTRAINT workflow_commits_pkey PRIMARY KEY (partition, commit_offset, action_index);


--
-- Name: workflow_projection workflow_projection_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workflow_projection
    ADD CONSTRAINT workflow_projection_pkey PRIMARY KEY (generation, key);


--
-- Name: workflow_state workflow_state_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workflow_state
    ADD CONSTRAINT workflow_state_pkey PRIMARY KEY (key);


--
-- Name: blob_chunks_created_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX blob_chunks_created_idx ON public.blob_chunks USING btree (created_at);


--
-- Name: blob_references_key_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX blob_references_key_idx ON public.blob_references USING btree (key);


--
-- Name: blobs_created_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX blobs_created_idx ON public.blobs USING btree (created_at);


--
-- Name: blobs_released_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX blobs_released_idx ON public.blobs USING btree (digest) WHERE released;


--
-- Name: blobs_upload_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX blobs_upload_idx ON public.blobs USING btree (upload_id) WHERE (upload_id IS NOT NULL);


--
-- Name: leases_unnoted_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX leases_unnoted_idx ON public.leases USING btree (name) WHERE (NOT end_noted);


--
-- Name: stamp_requests_claim_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX stamp_requests_claim_idx ON public.stamp_requests USING btree (namespace, stamp_id) WHERE (released_at IS NULL);


--
-- Name: workflow_commits_key_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_commits_key_idx ON public.workflow_commits USING btree (key, version) WHERE (key IS NOT NULL);


--
-- Name: workflow_projection_created_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_projection_created_idx ON public.workflow_projection USING btree (generation, created_at, key);


--
-- Name: workflow_projection_indices_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_projection_indices_idx ON public.workflow_projection USING gin (indices jsonb_path_ops);


--
-- Name: workflow_projection_namespace_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_projection_namespace_idx ON public.workflow_projection USING btree (generation, namespace, key);


--
-- Name: workflow_projection_tag_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_projection_tag_idx ON public.workflow_projection USING btree (generation, tag, key);


--
-- Name: workflow_state_ended_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_state_ended_idx ON public.workflow_state USING btree (partition, ended_at) WHERE ((ended_at IS NOT NULL) AND (NOT forgotten));


--
-- Name: workflow_state_forgotten_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_state_forgotten_idx ON public.workflow_state USING btree (partition, ended_at) WHERE ((ended_at IS NOT NULL) AND forgotten);


--
-- Name: workflow_state_open_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX workflow_state_open_idx ON public.workflow_state USING btree (partition, key) WHERE (NOT final);


--
-- PostgreSQL database dump complete
--


