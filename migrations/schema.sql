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

SET default_tablespace = '';

SET default_table_access_method = heap;

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
    stamp_id uuid NOT NULL,
    kind text NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    CONSTRAINT stamp_events_kind_check CHECK ((kind = ANY (ARRAY['created'::text, 'revoked'::text, 'validated'::text, 'batch_processed'::text])))
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
-- Name: stamp_requests; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stamp_requests (
    namespace text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    stamp_id uuid NOT NULL,
    created boolean NOT NULL
);


--
-- Name: TABLE stamp_requests; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.stamp_requests IS 'Owned by the stamping node: what each request_id asked for and was answered.';


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
-- Name: schema_migrations schema_migrations_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkc PRIMARY KEY (version_num);


--
-- Name: stamp_events stamp_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_events
    ADD CONSTRAINT stamp_events_pkey PRIMARY KEY (event_id);


--
-- Name: stamp_requests stamp_requests_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stamp_requests
    ADD CONSTRAINT stamp_requests_pkey PRIMARY KEY (namespace, request_id);


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
-- PostgreSQL database dump complete
--


